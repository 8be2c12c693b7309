/* The forward pass of a decoder, in phases that all threads work on together.
 *
 * A batch is rows of tokens from one or more sequence slots, without padding. Python passes the slot and position of the
 * rows (edgekit/runners/cpu/runner.py).
 */
#include "common.h"

#include <string.h>

#include "attention.h"
#include "model.h"

#define MEMORY_BOUND_ROWS 16 /* batches up to this size are bound by reading the weights, not by computing */

/* Multiply by tiles [from, to), numbered consecutively across the matrices, whose outputs are concatenated in y. */
static void multiply_tiles(ek_model *m, const ek_matrix *const *matrices, int count, int rows, int from, int to,
                           float *y, size_t stride) {
    int column = 0;
    for (int i = 0, before = 0; i < count && from < to; i++) {
        if (!matrices[i]) continue;
        const int end = before + matrices[i]->tiles;
        if (from < end) {
            const int stop = imin(to, end);
            m->k->multiply(matrices[i], &m->q8[q8_index(matrices, i)], rows, from - before, stop - before, y + column,
                           stride);
            from = stop;
        }
        before = end;
        column += matrices[i]->out;
    }
}

/* y = x · matrices^T, concatenated; x is in `q8`. */
static void multiply(ek_model *m, ek_pool *pool, int thread, const ek_matrix *const *matrices, int count, int rows,
                     float *y, size_t stride) {
    const int threads = ek_pool_threads(pool);
    int tiles = 0;
    for (int i = 0; i < count; i++) tiles += matrices[i] ? matrices[i]->tiles : 0;
    if (rows <= MEMORY_BOUND_ROWS) {
        /* Each thread reads one contiguous range of tiles, the same in every step. */
        multiply_tiles(m, matrices, count, rows, tiles * thread / threads, tiles * (thread + 1) / threads, y, stride);
    } else {
        const int size = imax(1, imin(8, tiles / (8 * threads)));
        for (int first; (first = ek_next(pool, size)) < tiles;)
            multiply_tiles(m, matrices, count, rows, first, imin(first + size, tiles), y, stride);
    }
    ek_barrier(pool);
}

/* Quantize a row of the matrices' input, once for each group size. */
static void quantize_row(ek_model *m, const ek_matrix *const *matrices, int count, const float *x, int row) {
    for (int i = 0; i < count; i++) {
        const ek_matrix *w = matrices[i];
        if (w && q8_index(matrices, i) == i) m->k->quantize_row_q8(x, w->in, w->group, w->padded, &m->q8[i], row);
    }
}

static void run(void *context, ek_pool *pool, int thread) {
    ek_model *m = context;
    const ek_kernels *k = m->k;
    const int hidden = m->hidden, queries = m->heads * m->head_dim;
    const size_t qkv = (size_t)(queries + 2 * m->kv_heads * m->head_dim), both = 2 * (size_t)m->intermediate;
    int rows = m->rows;
    JOBS(row, rows) {
        float *h = m->h + (size_t)row * hidden, *x = m->x + (size_t)row * hidden;
        k->dequantize_row(m->embedding, m->tokens[row], m->embedding_scale, h);
        k->add_norm(h, NULL, NULL, m->layer[0].norms[INPUT_NORM], m->eps, hidden, x);
        quantize_row(m, m->layer[0].matrices, 3, x, row);
    }
    ek_barrier(pool);
    for (int i = 0; i < m->layers; i++) {
        const layer *l = &m->layer[i];
        const bool last = i + 1 == m->layers;
        multiply(m, pool, thread, l->matrices, 3, rows, m->projected, qkv);
        rope_and_store(m, pool, l, qkv);
        /* If no logits are wanted, the last layer only has to fill its KV cache. */
        if (last && !m->wanted_count) return;
        attend(m, pool, l, thread);
        if (m->split_kv) {
            JOBS(row, rows) merge_spans(m, l, row);
            ek_barrier(pool);
        }
        if (last) {
            /* From here on only rows whose logits are wanted: compact them in place. */
            rows = m->wanted_count;
            if (thread == 0)
                for (int row = 0; row < rows; row++) {
                    const size_t from = (size_t)m->wanted[row];
                    memmove(m->attended + (size_t)row * queries, m->attended + from * queries, queries * sizeof(float));
                    memmove(m->h + (size_t)row * hidden, m->h + from * hidden, hidden * sizeof(float));
                }
            ek_barrier(pool);
        }
        JOBS(row, rows) quantize_row(m, &l->matrices[OUT], 1, m->attended + (size_t)row * queries, row);
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[OUT], 1, rows, m->branch, (size_t)hidden);
        JOBS(row, rows) {
            float *x = m->x + (size_t)row * hidden;
            k->add_norm(m->h + (size_t)row * hidden, m->branch + (size_t)row * hidden, l->norms[BRANCH_NORM],
                        l->norms[MLP_NORM], m->eps, hidden, x);
            quantize_row(m, &l->matrices[GATE], 2, x, row);
        }
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[GATE], 2, rows, m->projected, both);
        JOBS(row, rows) {
            float *gate = m->projected + (size_t)row * both;
            k->gate(gate, gate + m->intermediate, m->intermediate, m->gelu, gate);
            quantize_row(m, &l->matrices[DOWN], 1, gate, row);
        }
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[DOWN], 1, rows, m->branch, (size_t)hidden);
        const float *norm = last ? m->final_norm : m->layer[i + 1].norms[INPUT_NORM];
        const ek_matrix *const *next = last ? &m->head : m->layer[i + 1].matrices;
        JOBS(row, rows) {
            float *x = m->x + (size_t)row * hidden;
            k->add_norm(m->h + (size_t)row * hidden, m->branch + (size_t)row * hidden, l->norms[MLP_OUT_NORM], norm,
                        m->eps, hidden, x);
            quantize_row(m, next, last ? 1 : 3, x, row);
        }
        ek_barrier(pool);
    }
    multiply(m, pool, thread, &m->head, 1, rows, m->logits, (size_t)m->vocab);
}

/* Append tokens to their slots. `chunk_table` is an array of `chunk`. `wanted` are the rows, ascending, whose logits
 * are written, [wanted_count, vocab]. Returns -1 if memory cannot be allocated. */
EXPORT int ek_step(ek_model *m, int rows, const int32_t *tokens, int chunks, const int32_t *chunk_table,
                   int wanted_count, const int32_t *wanted, float *logits) {
    if (ek_reserve_rows(m, rows)) return -1;
    m->rows = rows, m->tokens = tokens;
    m->chunks = chunks, m->chunk = (const chunk *)chunk_table;
    m->wanted_count = wanted_count, m->wanted = wanted, m->logits = logits;
    plan_attention(m);
    ek_pool_run(m->pool, run, m);
    return 0;
}
