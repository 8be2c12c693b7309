/* Allocates the activations of a step, for as many rows as the largest step so far. */
#include "common.h"
#include "model.h"

/* The maximum columns and groups per row of `q8[index]`; 0 if no matrix uses it. */
static void q8_width(const ek_model *m, int index, size_t *columns, size_t *groups) {
    *columns = *groups = 0;
    for (int i = 0; i <= m->layers; i++)
        for (int j = 0; j < (i < m->layers ? MATRICES : 1); j++) {
            const ek_matrix *const *matrices = i < m->layers ? m->layer[i].matrices : &m->head;
            const int first = i == m->layers ? 0 : j < OUT ? QUERY : j == OUT ? OUT : j < DOWN ? GATE : DOWN;
            const ek_matrix *w = matrices[j];
            if (!w || q8_index(matrices + first, j - first) != j - first || j - first != index) continue;
            if ((size_t)w->padded > *columns) *columns = (size_t)w->padded;
            if ((size_t)w->groups > *groups) *groups = (size_t)w->groups;
        }
}

int ek_reserve_rows(ek_model *m, int rows) {
    const int queries = m->heads * m->head_dim;
    const int projected = imax(queries + 2 * m->kv_heads * m->head_dim, 2 * m->intermediate);
    const size_t r = (size_t)rows, items = (r + (size_t)m->partial_rows * m->spans) * m->heads;
    if (rows <= m->max_rows) return 0;
    m->max_rows = 0;
    for (int index = 0; index < MAX_Q8; index++) {
        ek_rows *q8 = &m->q8[index];
        size_t columns, groups;
        q8_width(m, index, &columns, &groups);
        if (reallocate((void **)&q8->codes, r * columns) || reallocate((void **)&q8->scales, r * groups * 4) ||
            reallocate((void **)&q8->sums, r * groups * 4) || reallocate((void **)&q8->code_sums, r * groups * 4))
            return -1;
    }
    if (reallocate((void **)&m->h, r * m->hidden * 4) || reallocate((void **)&m->x, r * imax(m->hidden, queries) * 4) ||
        reallocate((void **)&m->projected, r * projected * 4) || reallocate((void **)&m->attended, r * queries * 4) ||
        reallocate((void **)&m->branch, r * m->hidden * 4) || reallocate((void **)&m->items, items * sizeof(item)))
        return -1;
    m->max_rows = rows;
    return 0;
}
