/* A decoder's step: what is computed from what, in phases that all threads share.
 *
 * Rows are tokens, of one sequence slot or of several; nothing is padded. Python owns the KV cache and tells which rows
 * lie where (edgekit/runners/cpu/runner.py).
 */
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels.h"
#include "threads.h"

#define EXPORT __attribute__((visibility("default")))
#define SETS 3 /* matrices that read the same input: q, k and v */

enum { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN, MATRICES };
enum { INPUT_NORM, BRANCH_NORM, MLP_NORM, MLP_OUT_NORM, QUERY_NORM, KEY_NORM, NORMS };

typedef struct {
    const ek_matrix *matrices[MATRICES]; /* where one joins the next ones, those are NULL */
    float *norms[NORMS];                 /* NULL: there is none */
    const float *cosines, *sines;        /* [positions, head_dim / 2] */
    uint16_t *keys, *values;             /* of slot 0 */
    int window;                          /* positions that a token sees, itself included; 0: all */
    float scale;
} layer;

/* Rows of one sequence slot that follow each other. */
typedef struct {
    int slot, position, row, rows;
} chunk;

/* Queries of one KV head that are computed together; of one span, or, if it is -1, of all. */
typedef struct {
    int chunk, row, rows, head, heads, span;
} item;

typedef struct {
    const ek_kernels *k;
    ek_pool *pool;
    int vocab, hidden, intermediate, heads, kv_heads, head_dim, layers, positions;
    float eps, embedding_scale;
    bool gelu;
    const ek_matrix *embedding, *head;
    float *final_norm;
    layer *layer;
    size_t slot_stride; /* elements of one slot in a layer's keys, or values */
    /* Room for so many rows: */
    int room;
    float *h, *x, *wide, *attended, *branch;
    ek_rows rounded[SETS]; /* of one input, as the groups of the matrices that read it want it */
    item *items;
    float *scratch; /* [threads]: scores of MOST_QUERIES, and what they saw of one span and of all so far */
    size_t scratch_size;
    bool shared;      /* whether threads share the spans of a query: then what was seen of each is here, */
    ek_seen *seen;    /* [rows, heads, spans] */
    float *seen_values; /* [rows, heads, spans, head_dim] */
    int seen_rows, spans;
    /* The step that runs: */
    int rows, chunks, item_count, wanted_count;
    const int32_t *tokens, *wanted;
    const chunk *chunk;
    float *logits;
} ek_model;

static int least(int a, int b) { return a < b ? a : b; }
static int most(int a, int b) { return a > b ? a : b; }
static int whole(int size, int step) { return (size + step - 1) / step * step; }

/* ---- a step ---- */

#define FEW 16 /* rows */

#define JOBS(index, count) for (int index; (index = ek_next(pool, 1)) < (count);)

/* Where the input of matrix `i` is, rounded in its groups: with the first that has the same. */
static int set_of(const ek_matrix *const *matrices, int i) {
    int set = 0;
    while (!matrices[set] || matrices[set]->group != matrices[i]->group) set++;
    return set;
}

/* Tiles [from, to) of matrices one beside the other. */
static void multiply_tiles(ek_model *m, const ek_matrix *const *matrices, int count, int rows, int from, int to,
                           float *y, size_t stride) {
    int column = 0;
    for (int i = 0, before = 0; i < count && from < to; i++) {
        if (!matrices[i]) continue;
        const int end = before + matrices[i]->tiles;
        if (from < end) {
            const int stop = least(to, end);
            m->k->multiply(matrices[i], &m->rounded[set_of(matrices, i)], rows, from - before, stop - before, y + column, stride);
            from = stop;
        }
        before = end;
        column += matrices[i]->out;
    }
}

/* y = x · matrices, one beside the other. */
static void multiply(ek_model *m, ek_pool *pool, int thread, const ek_matrix *const *matrices, int count, int rows,
                     float *y, size_t stride) {
    const int threads = ek_pool_threads(pool);
    int tiles = 0;
    for (int i = 0; i < count; i++) tiles += matrices[i] ? matrices[i]->tiles : 0;
    if (rows <= FEW) {
        /* Memory is what takes time: each thread reads one long stretch, and the same one in each step. */
        multiply_tiles(m, matrices, count, rows, tiles * thread / threads, tiles * (thread + 1) / threads, y, stride);
    } else {
        const int size = most(1, least(8, tiles / (8 * threads)));
        for (int first; (first = ek_next(pool, size)) < tiles;)
            multiply_tiles(m, matrices, count, rows, first, least(first + size, tiles), y, stride);
    }
    ek_barrier(pool);
}

static void round_row(ek_model *m, const ek_matrix *const *matrices, int count, const float *x, int row) {
    for (int i = 0; i < count; i++) {
        const ek_matrix *to = matrices[i];
        if (to && set_of(matrices, i) == i) m->k->round_row(x, to->in, to->group, to->padded, &m->rounded[i], row);
    }
}

/* Queries and keys are turned, keys and values stored. */
static void place(ek_model *m, ek_pool *pool, const layer *l, size_t stride) {
    const int size = m->head_dim, queries = m->heads * size;
    JOBS(index, m->rows) {
        int c = 0;
        while (index >= m->chunk[c].row + m->chunk[c].rows) c++;
        const int position = m->chunk[c].position + index - m->chunk[c].row;
        const float *row = m->wide + (size_t)index * stride;
        const float *cosines = l->cosines + (size_t)position * (size / 2);
        const float *sines = l->sines + (size_t)position * (size / 2);
        float turned[1024];
        for (int head = 0; head < m->heads; head++)
            m->k->turn(row + head * size, l->norms[QUERY_NORM], m->eps, cosines, sines, size, l->scale,
                       m->x + (size_t)index * queries + head * size);
        for (int head = 0; head < m->kv_heads; head++) {
            const size_t at = m->chunk[c].slot * m->slot_stride + (size_t)head * m->positions * size;
            m->k->turn(row + queries + head * size, l->norms[KEY_NORM], m->eps, cosines, sines, size, 1.0f, turned);
            m->k->store_key(turned, size, l->keys + at, position);
            m->k->store_value(row + queries + (m->kv_heads + head) * size, size, l->values + at, position);
        }
    }
    ek_barrier(pool);
}

static void attend(ek_model *m, ek_pool *pool, const layer *l, int thread) {
    const int size = m->head_dim, queries = m->heads * size, group = m->heads / m->kv_heads;
    float *scratch = m->scratch + (size_t)thread * m->scratch_size;
    float *now = scratch + MOST_QUERIES * SPAN, *before = now + MOST_QUERIES * size;
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
                a.first[a.rows] = l->window > 0 ? most(0, end - l->window) : 0;
                first = least(first, a.first[a.rows]);
                last = most(last, end);
            }
        if (t->span >= 0) {
            ek_seen seen[MOST_QUERIES];
            ek_seen *to = m->seen + ((size_t)t->row * m->heads + t->head) * m->spans + t->span;
            if (first >= (t->span + 1) * SPAN) continue; /* before the window */
            for (int j = 0; j < a.rows; j++) seen[j] = to[(size_t)j * m->spans];
            m->k->attend(&a, t->span, seen);
            for (int j = 0; j < a.rows; j++) to[(size_t)j * m->spans] = seen[j];
            continue;
        }
        ek_seen seen[MOST_QUERIES], all[MOST_QUERIES];
        bool any[MOST_QUERIES] = {false};
        for (int j = 0; j < a.rows; j++) seen[j].values = now + j * size, all[j].values = before + j * size;
        for (int span = first / SPAN; span * SPAN < last; span++) {
            m->k->attend(&a, span, seen);
            for (int j = 0; j < a.rows; j++) {
                if (a.first[j] >= (span + 1) * SPAN || a.end[j] <= span * SPAN) continue;
                if (any[j]) {
                    m->k->join(&all[j], &seen[j], size);
                } else {
                    const ek_seen other = all[j];
                    all[j] = seen[j], seen[j] = other;
                    any[j] = true;
                }
            }
        }
        for (int j = 0; j < a.rows; j++)
            m->k->finish(&all[j], size,
                         m->attended + (size_t)(t->row + j / t->heads) * queries + (t->head + j % t->heads) * size);
    }
    ek_barrier(pool);
}

/* Where threads shared the spans: put together what a row's queries saw. */
static void gather(ek_model *m, const layer *l, int row) {
    const chunk *c = &m->chunk[row];
    const int end = c->position + 1, first = l->window > 0 ? most(0, end - l->window) : 0;
    for (int head = 0; head < m->heads; head++) {
        ek_seen *seen = m->seen + ((size_t)row * m->heads + head) * m->spans;
        int span = first / SPAN;
        ek_seen *all = &seen[span];
        while (++span * SPAN < end) m->k->join(all, &seen[span], m->head_dim);
        m->k->finish(all, m->head_dim, m->attended + ((size_t)row * m->heads + head) * m->head_dim);
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
        k->read_row(m->embedding, m->tokens[row], m->embedding_scale, h);
        k->add_norm(h, NULL, NULL, m->layer[0].norms[INPUT_NORM], m->eps, hidden, x);
        round_row(m, m->layer[0].matrices, 3, x, row);
    }
    ek_barrier(pool);
    for (int i = 0; i < m->layers; i++) {
        const layer *l = &m->layer[i];
        const bool last = i + 1 == m->layers;
        multiply(m, pool, thread, l->matrices, 3, rows, m->wide, qkv);
        place(m, pool, l, qkv);
        /* Only the cache is wanted of what comes before. */
        if (last && !m->wanted_count) return;
        attend(m, pool, l, thread);
        if (m->shared) {
            JOBS(row, rows) gather(m, l, row);
            ek_barrier(pool);
        }
        if (last) {
            /* From here on, only rows whose logits are wanted: they move up, each behind its own place. */
            rows = m->wanted_count;
            if (thread == 0)
                for (int row = 0; row < rows; row++) {
                    const size_t from = (size_t)m->wanted[row];
                    memmove(m->attended + (size_t)row * queries, m->attended + from * queries, queries * sizeof(float));
                    memmove(m->h + (size_t)row * hidden, m->h + from * hidden, hidden * sizeof(float));
                }
            ek_barrier(pool);
        }
        JOBS(row, rows) round_row(m, &l->matrices[OUT], 1, m->attended + (size_t)row * queries, row);
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[OUT], 1, rows, m->branch, (size_t)hidden);
        JOBS(row, rows) {
            float *x = m->x + (size_t)row * hidden;
            k->add_norm(m->h + (size_t)row * hidden, m->branch + (size_t)row * hidden, l->norms[BRANCH_NORM],
                        l->norms[MLP_NORM], m->eps, hidden, x);
            round_row(m, &l->matrices[GATE], 2, x, row);
        }
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[GATE], 2, rows, m->wide, both);
        JOBS(row, rows) {
            float *gate = m->wide + (size_t)row * both;
            k->gate(gate, gate + m->intermediate, m->intermediate, m->gelu, gate);
            round_row(m, &l->matrices[DOWN], 1, gate, row);
        }
        ek_barrier(pool);
        multiply(m, pool, thread, &l->matrices[DOWN], 1, rows, m->branch, (size_t)hidden);
        const float *norm = last ? m->final_norm : m->layer[i + 1].norms[INPUT_NORM];
        const ek_matrix *const *next = last ? &m->head : m->layer[i + 1].matrices;
        JOBS(row, rows) {
            float *x = m->x + (size_t)row * hidden;
            k->add_norm(m->h + (size_t)row * hidden, m->branch + (size_t)row * hidden, l->norms[MLP_OUT_NORM], norm,
                        m->eps, hidden, x);
            round_row(m, next, last ? 1 : 3, x, row);
        }
        ek_barrier(pool);
    }
    multiply(m, pool, thread, &m->head, 1, rows, m->logits, (size_t)m->vocab);
}

/* Cut attention into pieces: some tokens of one KV head's queries; where there are few of them, their spans apart. */
static void cut(ek_model *m) {
    const int group = m->heads / m->kv_heads, jobs = m->chunks * m->kv_heads, threads = ek_pool_threads(m->pool);
    int parts = (group + MOST_QUERIES - 1) / MOST_QUERIES;
    m->shared = false;
    if (m->rows == m->chunks && m->rows <= m->seen_rows && threads > 1 && jobs < 4 * threads)
        for (int c = 0; c < m->chunks; c++) m->shared = m->shared || m->chunk[c].position >= SPAN;
    const int heads = (group + parts - 1) / parts, rows = most(1, MOST_QUERIES / heads);
    m->item_count = 0;
    for (int c = m->chunks - 1; c >= 0; c--)
        /* The last tokens first: they look back furthest. */
        for (int done = 0; done < m->chunk[c].rows; done += rows) {
            const int end = m->chunk[c].row + m->chunk[c].rows - done, start = most(m->chunk[c].row, end - rows);
            const int spans = m->shared ? m->chunk[c].position / SPAN + 1 : 1;
            for (int span = 0; span < spans; span++)
                for (int head = 0; head < m->heads; head += group)
                    for (int sub = 0; sub < group; sub += heads)
                        m->items[m->item_count++] = (item){c,          start,
                                                           end - start, head + sub,
                                                           least(heads, group - sub), m->shared ? span : -1};
        }
}

static int take(void **pointer, size_t bytes) {
    free(*pointer);
    *pointer = NULL;
    return posix_memalign(pointer, 64, bytes ? bytes : 64);
}

/* How wide the rounded inputs of a set are at most, in columns and in groups; none where nothing needs the set. */
static void widest(const ek_model *m, int set, size_t *columns, size_t *groups) {
    *columns = *groups = 0;
    for (int i = 0; i <= m->layers; i++)
        for (int j = 0; j < (i < m->layers ? MATRICES : 1); j++) {
            const ek_matrix *const *matrices = i < m->layers ? m->layer[i].matrices : &m->head;
            const int first = i == m->layers ? 0 : j < OUT ? QUERY : j == OUT ? OUT : j < DOWN ? GATE : DOWN;
            const ek_matrix *x = matrices[j];
            if (!x || set_of(matrices + first, j - first) != j - first || j - first != set) continue;
            if ((size_t)x->padded > *columns) *columns = (size_t)x->padded;
            if ((size_t)x->groups > *groups) *groups = (size_t)x->groups;
        }
}

static int make_room(ek_model *m, int rows) {
    const int queries = m->heads * m->head_dim;
    const int wide = most(queries + 2 * m->kv_heads * m->head_dim, 2 * m->intermediate);
    const size_t r = (size_t)rows, items = (r + (size_t)m->seen_rows * m->spans) * m->heads;
    if (rows <= m->room) return 0;
    m->room = 0;
    for (int set = 0; set < SETS; set++) {
        ek_rows *rounded = &m->rounded[set];
        size_t columns, groups;
        widest(m, set, &columns, &groups);
        if (take((void **)&rounded->codes, r * columns) || take((void **)&rounded->scales, r * groups * 4) ||
            take((void **)&rounded->sums, r * groups * 4) || take((void **)&rounded->whole, r * groups * 4))
            return -1;
    }
    if (take((void **)&m->h, r * m->hidden * 4) || take((void **)&m->x, r * most(m->hidden, queries) * 4) ||
        take((void **)&m->wide, r * wide * 4) || take((void **)&m->attended, r * queries * 4) ||
        take((void **)&m->branch, r * m->hidden * 4) || take((void **)&m->items, items * sizeof(item)))
        return -1;
    m->room = rows;
    return 0;
}

/* Append rows to their slots. `wanted` are rows in rising order whose logits are written, [count, vocab]. */
EXPORT int ek_step(ek_model *m, int rows, const int32_t *tokens, int chunks, const int32_t *places, int wanted_count,
                   const int32_t *wanted, float *logits) {
    if (make_room(m, rows)) return -1;
    m->rows = rows, m->tokens = tokens;
    m->chunks = chunks, m->chunk = (const chunk *)places;
    m->wanted_count = wanted_count, m->wanted = wanted, m->logits = logits;
    cut(m);
    ek_pool_run(m->pool, run, m);
    return 0;
}

/* ---- keys and values in rows: [layers, keys and values, KV heads, count, head_dim] ---- */

static uint16_t *head_of(const ek_model *m, uint16_t *array, int slot, int head) {
    return array + slot * m->slot_stride + (size_t)head * m->positions * m->head_dim;
}

/* Read positions [start, start + count) of a slot into `rows`, or write them. */
static void copy_rows(const ek_model *m, int slot, int start, int count, uint16_t *rows, bool write) {
    const int size = m->head_dim;
    for (int i = 0; i < m->layers; i++) {
        for (int head = 0; head < m->kv_heads; head++)
            for (int p = 0; p < count; p++, rows += size) {
                const int position = start + p;
                uint16_t *key = head_of(m, m->layer[i].keys, slot, head);
                key += (size_t)(position / TILE) * size * TILE + position % TILE;
                if (write)
                    for (int d = 0; d < size; d++) key[(size_t)d * TILE] = rows[d];
                else
                    for (int d = 0; d < size; d++) rows[d] = key[(size_t)d * TILE];
            }
        for (int head = 0; head < m->kv_heads; head++, rows += (size_t)count * size) {
            uint16_t *values = head_of(m, m->layer[i].values, slot, head) + (size_t)start * size;
            memcpy(write ? values : rows, write ? rows : values, (size_t)count * size * sizeof *rows);
        }
    }
}

EXPORT void ek_read_kv(const ek_model *m, int slot, int start, int count, uint16_t *rows) {
    copy_rows(m, slot, start, count, rows, false);
}

EXPORT void ek_write_kv(const ek_model *m, int slot, int start, int count, const uint16_t *rows) {
    copy_rows(m, slot, start, count, (uint16_t *)rows, true);
}

/* ---- making one ---- */

/* Weights lie together in huge pages where the system has them: a tenth of a step is looking pages up otherwise. */
typedef struct {
    uint8_t *data;
    size_t size;
    atomic_size_t used;
} ek_arena;

#define HUGE_PAGE ((size_t)1 << 21)

EXPORT ek_arena *ek_arena_new(size_t bytes) {
    ek_arena *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    if (posix_memalign((void **)&a->data, HUGE_PAGE, a->size)) {
        free(a);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    madvise(a->data, a->size, MADV_HUGEPAGE);
#endif
    return a;
}

EXPORT void ek_arena_free(ek_arena *a) {
    if (a) free(a->data);
    free(a);
}

/* Bytes that a matrix takes of an arena. */
EXPORT size_t ek_matrix_bytes(int out, int in, int bits, int group, int own, int wide) {
    const size_t groups = (size_t)(whole(in, group) / group), tiles = (size_t)(whole(out, TILE) / TILE);
    const size_t one = TILE * ((size_t)group * bits / 8 + (wide ? 4 : 2) * (own ? 2 : 1));
    return (one * groups * tiles + 63) / 64 * 64;
}

/* Put a matrix into the kernels' form. `offsets` NULL: every code is less `zero_point`. Factors float32 [out, groups];
 * codes [out, groups, group · bits / 8], the first of two in the low half of a byte. */
EXPORT ek_matrix *ek_matrix_new(ek_arena *arena, const char *kernels, int out, int in, int bits, int group,
                                const uint8_t *codes, const float *scales, const float *offsets, int zero_point,
                                int wide, const float *bias) {
    const ek_kernels *k = ek_find(kernels);
    ek_matrix *m = calloc(1, sizeof *m);
    const int groups = whole(in, group) / group, tiles = whole(out, TILE) / TILE;
    const size_t packed = (size_t)group * bits / 8, factor = wide ? 4 : 2;
    if (!m || !k) {
        free(m);
        return NULL;
    }
    *m = (ek_matrix){.out = out, .in = in, .padded = groups * group, .bits = bits, .group = group, .groups = groups,
                     .tiles = tiles, .zero_point = offsets ? -1 : zero_point, .wide = wide != 0};
    m->group_bytes = TILE * (packed + factor * (offsets ? 2 : 1));
    const size_t bytes = ek_matrix_bytes(out, in, bits, group, offsets != NULL, wide);
    const size_t at = atomic_fetch_add(&arena->used, bytes);
    m->data = arena->data + at;
    if (at + bytes > arena->size || (bias && take((void **)&m->bias, (size_t)tiles * TILE * sizeof(float)))) {
        free(m);
        return NULL;
    }
    if (bias) {
        memset(m->bias, 0, (size_t)tiles * TILE * sizeof(float));
        memcpy(m->bias, bias, (size_t)out * sizeof(float));
    }
    for (int tile = 0; tile < tiles; tile++)
        for (int g = 0; g < groups; g++) {
            uint8_t *to = m->data + ((size_t)tile * groups + g) * m->group_bytes;
            float factors[2][TILE] = {{0}, {0}};
            const int lanes = least(TILE, out - tile * TILE);
            if (lanes < TILE) memset(to, 0, m->group_bytes);
            for (int lane = 0; lane < lanes; lane++) {
                const size_t at = (size_t)(tile * TILE + lane) * groups + g;
                const uint8_t *from = codes + at * packed;
                if (bits == 8)
                    for (int i = 0; i < group; i += 4) memcpy(to + i * TILE + lane * 4, from + i, 4);
                else
                    for (int i = 0; i < group; i += 8, from += 4)
                        for (int j = 0; j < 4; j++) {
                            const int low = from[j / 2] >> (j % 2 * 4) & 15, high = from[2 + j / 2] >> (j % 2 * 4) & 15;
                            to[i * TILE / 2 + lane * 4 + j] = (uint8_t)(low | high << 4);
                        }
                factors[0][lane] = scales[at];
                if (offsets) factors[1][lane] = offsets[at];
            }
            to += packed * TILE;
            for (int part = 0; part < (offsets ? 2 : 1); part++, to += TILE * factor) {
                if (wide) memcpy(to, factors[part], sizeof factors[part]);
                else k->to_half(factors[part], TILE, (uint16_t *)to);
            }
        }
    return m;
}

EXPORT void ek_matrix_free(ek_matrix *m) {
    if (!m) return;
    free(m->bias);
    free(m);
}

EXPORT void ek_model_free(ek_model *m) {
    if (!m) return;
    ek_pool_free(m->pool);
    for (int i = 0; m->layer && i < m->layers; i++)
        for (int j = 0; j < NORMS; j++) free(m->layer[i].norms[j]);
    free(m->final_norm);
    free(m->layer);
    free(m->h), free(m->x), free(m->wide), free(m->attended), free(m->branch);
    for (int set = 0; set < SETS; set++) {
        ek_rows *rounded = &m->rounded[set];
        free(rounded->codes), free(rounded->scales), free(rounded->sums), free(rounded->whole);
    }
    free(m->items), free(m->scratch), free(m->seen), free(m->seen_values);
    free(m);
}

EXPORT ek_model *ek_model_new(const char *kernels, int threads, int vocab, int hidden, int intermediate, int heads,
                              int kv_heads, int head_dim, int layers, int positions, float eps, int gelu,
                              float embedding_scale) {
    ek_model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    *m = (ek_model){.k = ek_find(kernels), .vocab = vocab, .hidden = hidden, .intermediate = intermediate,
                    .heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .layers = layers,
                    .positions = positions, .eps = eps, .gelu = gelu != 0, .embedding_scale = embedding_scale};
    m->layer = calloc((size_t)layers, sizeof(layer));
    m->pool = m->layer && m->k ? ek_pool_new(threads) : NULL;
    m->slot_stride = (size_t)kv_heads * positions * head_dim;
    m->scratch_size = (size_t)MOST_QUERIES * (SPAN + 2 * head_dim);
    m->spans = positions / SPAN + 1;
    m->seen_rows = whole(4 * threads, kv_heads) / kv_heads;
    const size_t places = (size_t)m->seen_rows * heads * m->spans;
    if (!m->pool || take((void **)&m->scratch, threads * m->scratch_size * sizeof(float)) ||
        take((void **)&m->seen, places * sizeof(ek_seen)) ||
        take((void **)&m->seen_values, places * head_dim * sizeof(float))) {
        ek_model_free(m);
        return NULL;
    }
    for (size_t i = 0; i < places; i++) m->seen[i].values = m->seen_values + i * head_dim;
    return m;
}

/* The matrices stay the caller's, and must live as long as the model. */
EXPORT void ek_model_tables(ek_model *m, const ek_matrix *embedding, const ek_matrix *head) {
    m->embedding = embedding;
    m->head = head;
}

EXPORT void ek_model_matrix(ek_model *m, int index, int which, const ek_matrix *matrix) {
    m->layer[index].matrices[which] = matrix;
}

/* A norm's weights are copied; layer -1 is the last norm. */
EXPORT int ek_model_norm(ek_model *m, int index, int which, int size, const float *weights) {
    float **to = index < 0 ? &m->final_norm : &m->layer[index].norms[which];
    if (take((void **)to, (size_t)size * sizeof(float))) return -1;
    memcpy(*to, weights, (size_t)size * sizeof(float));
    return 0;
}

EXPORT void ek_model_layer(ek_model *m, int index, int window, float scale, const float *cosines, const float *sines,
                           uint16_t *keys, uint16_t *values) {
    layer *l = &m->layer[index];
    l->window = window, l->scale = scale, l->cosines = cosines, l->sines = sines, l->keys = keys, l->values = values;
}
