/* Builds a decoder from what Python has read: sizes, matrices, norms, and the addresses of the KV cache. */
#include "common.h"

#include <string.h>

#include "model.h"

EXPORT void ek_model_free(ek_model *m) {
    if (!m) return;
    ek_pool_free(m->pool);
    for (int i = 0; m->layer && i < m->layers; i++)
        for (int j = 0; j < NORMS; j++) free(m->layer[i].norms[j]);
    free(m->final_norm);
    free(m->layer);
    free(m->h), free(m->x), free(m->projected), free(m->attended), free(m->branch);
    for (int index = 0; index < MAX_Q8; index++) {
        ek_rows *q8 = &m->q8[index];
        free(q8->codes), free(q8->scales), free(q8->sums), free(q8->code_sums);
    }
    free(m->items), free(m->scratch), free(m->partial), free(m->partial_values);
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
    m->scratch_size = (size_t)MAX_QUERIES * (SPAN + 2 * head_dim);
    m->spans = positions / SPAN + 1;
    m->partial_rows = round_up(4 * threads, kv_heads) / kv_heads;
    const size_t entries = (size_t)m->partial_rows * heads * m->spans;
    if (!m->pool || reallocate((void **)&m->scratch, threads * m->scratch_size * sizeof(float)) ||
        reallocate((void **)&m->partial, entries * sizeof(ek_partial_attention)) ||
        reallocate((void **)&m->partial_values, entries * head_dim * sizeof(float))) {
        ek_model_free(m);
        return NULL;
    }
    for (size_t i = 0; i < entries; i++) m->partial[i].values = m->partial_values + i * head_dim;
    return m;
}

/* The caller keeps ownership of the matrices, which must outlive the model. */
EXPORT void ek_model_embeddings(ek_model *m, const ek_matrix *embedding, const ek_matrix *head) {
    m->embedding = embedding;
    m->head = head;
}

EXPORT void ek_model_matrix(ek_model *m, int index, int which, const ek_matrix *matrix) {
    m->layer[index].matrices[which] = matrix;
}

/* The weights are copied. Layer -1 is the final norm. */
EXPORT int ek_model_norm(ek_model *m, int index, int which, int size, const float *weights) {
    float **to = index < 0 ? &m->final_norm : &m->layer[index].norms[which];
    if (reallocate((void **)to, (size_t)size * sizeof(float))) return -1;
    memcpy(*to, weights, (size_t)size * sizeof(float));
    return 0;
}

EXPORT void ek_model_layer(ek_model *m, int index, int window, float scale, int rotary_dim, const float *cosines,
                           const float *sines, uint16_t *keys, uint16_t *values) {
    layer *l = &m->layer[index];
    l->window = window, l->scale = scale, l->rotary_dim = rotary_dim, l->cosines = cosines, l->sines = sines;
    l->keys = keys, l->values = values;
}
