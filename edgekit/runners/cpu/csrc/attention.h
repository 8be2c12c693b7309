/* Attention in a step. Included by step.c alone, so that the phases of a step are compiled together.
 *
 * Queries and keys are rotated and keys and values stored; then items of work, planned before the step, are computed.
 */
#ifndef EK_ATTENTION_H
#define EK_ATTENTION_H

#include "common.h"
#include "model.h"

/* Divide attention into items: some tokens of one KV head's queries. In a decode step with few of them, also by span
 * (split-KV), so that all threads have work. */
static void plan_attention(ek_model *m) {
    const int group = m->heads / m->kv_heads, jobs = m->chunks * m->kv_heads, threads = ek_pool_threads(m->pool);
    int parts = (group + MAX_QUERIES - 1) / MAX_QUERIES;
    m->split_kv = false;
    if (m->rows == m->chunks && m->rows <= m->partial_rows && threads > 1 && jobs < 4 * threads)
        for (int c = 0; c < m->chunks; c++) m->split_kv = m->split_kv || m->chunk[c].position >= SPAN;
    const int heads = (group + parts - 1) / parts, rows = imax(1, MAX_QUERIES / heads);
    m->item_count = 0;
    for (int c = m->chunks - 1; c >= 0; c--)
        /* The last tokens first: they attend to the most positions. */
        for (int done = 0; done < m->chunk[c].rows; done += rows) {
            const int end = m->chunk[c].row + m->chunk[c].rows - done, start = imax(m->chunk[c].row, end - rows);
            const int spans = m->split_kv ? m->chunk[c].position / SPAN + 1 : 1;
            for (int span = 0; span < spans; span++)
                for (int head = 0; head < m->heads; head += group)
                    for (int sub = 0; sub < group; sub += heads)
                        m->items[m->item_count++] = (item){c,          start,
                                                           end - start, head + sub,
                                                           imin(heads, group - sub), m->split_kv ? span : -1};
        }
}

/* Rotate queries and keys; store keys and values in the KV cache. */
static void rope_and_store(ek_model *m, ek_pool *pool, const layer *l, size_t stride) {
    const int size = m->head_dim, queries = m->heads * size;
    JOBS(index, m->rows) {
        int c = 0;
        while (index >= m->chunk[c].row + m->chunk[c].rows) c++;
        const int position = m->chunk[c].position + index - m->chunk[c].row;
        const float *row = m->projected + (size_t)index * stride;
        const float *cosines = l->cosines + (size_t)position * (l->rotary_dim / 2);
        const float *sines = l->sines + (size_t)position * (l->rotary_dim / 2);
        float rotated[1024];
        for (int head = 0; head < m->heads; head++)
            m->k->rope(row + head * size, l->norms[QUERY_NORM], m->eps, cosines, sines, l->rotary_dim, size, l->scale,
                       m->x + (size_t)index * queries + head * size);
        for (int head = 0; head < m->kv_heads; head++) {
            const size_t at = m->chunk[c].slot * m->slot_stride + (size_t)head * m->positions * size;
            m->k->rope(row + queries + head * size, l->norms[KEY_NORM], m->eps, cosines, sines, l->rotary_dim, size,
                       1.0f, rotated);
            m->k->store_key(rotated, size, l->keys + at, position);
            m->k->store_value(row + queries + (m->kv_heads + head) * size, size, l->values + at, position);
        }
    }
    ek_barrier(pool);
}

static void attend(ek_model *m, ek_pool *pool, const layer *l, int thread) {
    const int size = m->head_dim, queries = m->heads * size, group = m->heads / m->kv_heads;
    float *scratch = m->scratch + (size_t)thread * m->scratch_size;
    float *span_values = scratch + MAX_QUERIES * SPAN, *total_values = span_values + MAX_QUERIES * size;
    ek_attention a = {.head_dim = size, .scores = scratch};
    JOBS(i, m->item_count) {
        const item *t = &m->items[i];
        const chunk *c = &m->chunk[t->chunk];
        const size_t at = c->slot * m->slot_stride + (size_t)(t->head / group) * m->positions * size;
        int first = c->position + t->row - c->row, last = 0;
        a.keys = l->keys + at;
        a.values = l->values + at;
        a.rows = 0;
        for (int row = t->row; row < t->row + t->rows; row++)
            for (int head = t->head; head < t->head + t->heads; head++, a.rows++) {
                const int end = c->position + row - c->row + 1;
                a.queries[a.rows] = m->x + (size_t)row * queries + head * size;
                a.end[a.rows] = end;
                a.first[a.rows] = l->window > 0 ? imax(0, end - l->window) : 0;
                first = imin(first, a.first[a.rows]);
                last = imax(last, end);
            }
        if (t->span >= 0) {
            ek_partial_attention partial[MAX_QUERIES];
            ek_partial_attention *to = m->partial + ((size_t)t->row * m->heads + t->head) * m->spans + t->span;
            if (first >= (t->span + 1) * SPAN) continue; /* the span ends before the window begins */
            for (int j = 0; j < a.rows; j++) partial[j] = to[(size_t)j * m->spans];
            m->k->attend(&a, t->span, partial);
            for (int j = 0; j < a.rows; j++) to[(size_t)j * m->spans] = partial[j];
            continue;
        }
        ek_partial_attention partial[MAX_QUERIES], total[MAX_QUERIES];
        bool started[MAX_QUERIES] = {false};
        for (int j = 0; j < a.rows; j++)
            partial[j].values = span_values + j * size, total[j].values = total_values + j * size;
        for (int span = first / SPAN; span * SPAN < last; span++) {
            m->k->attend(&a, span, partial);
            for (int j = 0; j < a.rows; j++) {
                if (a.first[j] >= (span + 1) * SPAN || a.end[j] <= span * SPAN) continue;
                if (started[j]) {
                    m->k->merge(&total[j], &partial[j], size);
                } else {
                    const ek_partial_attention swap = total[j];
                    total[j] = partial[j], partial[j] = swap;
                    started[j] = true;
                }
            }
        }
        for (int j = 0; j < a.rows; j++)
            m->k->finish(&total[j], size,
                         m->attended + (size_t)(t->row + j / t->heads) * queries + (t->head + j % t->heads) * size);
    }
    ek_barrier(pool);
}

/* After split-KV attention: merge the spans of a row's queries. */
static void merge_spans(ek_model *m, const layer *l, int row) {
    const chunk *c = &m->chunk[row];
    const int end = c->position + 1, first = l->window > 0 ? imax(0, end - l->window) : 0;
    for (int head = 0; head < m->heads; head++) {
        ek_partial_attention *partial = m->partial + ((size_t)row * m->heads + head) * m->spans;
        int span = first / SPAN;
        ek_partial_attention *total = &partial[span];
        while (++span * SPAN < end) m->k->merge(total, &partial[span], m->head_dim);
        m->k->finish(total, m->head_dim, m->attended + ((size_t)row * m->heads + head) * m->head_dim);
    }
}

#endif
