/* A decoder: its layers, its activations and the running step. Python owns the weights' matrices and the KV cache.
 *
 * model.c builds it, activations.c allocates what a step writes, step.c runs a step, kv_rows.c copies the KV cache.
 */
#ifndef EK_MODEL_H
#define EK_MODEL_H

#include "kernels.h"
#include "threads.h"

#define MAX_Q8 3 /* matrices with the same input (q, k and v), which may differ in group size */

enum { QUERY, KEY, VALUE, OUT, GATE, UP, DOWN, MATRICES };
enum { INPUT_NORM, BRANCH_NORM, MLP_NORM, MLP_OUT_NORM, QUERY_NORM, KEY_NORM, NORMS };

typedef struct {
    const ek_matrix *matrices[MATRICES]; /* fused q/k/v or gate/up: the first matrix, then NULL */
    float *norms[NORMS];                 /* or NULL */
    int rotary_dim;                      /* elements of a head that RoPE rotates */
    const float *cosines, *sines;        /* [positions, rotary_dim / 2] */
    uint16_t *keys, *values;             /* of slot 0 */
    int window;                          /* sliding window, the token itself included; 0: none */
    float scale;                         /* of attention scores */
} layer;

/* Consecutive tokens of one sequence slot: batch rows [row, row + rows), from `position` on. */
typedef struct {
    int slot, position, row, rows;
} chunk;

/* A unit of attention work: queries of one KV head, over one span of positions or, if `span` is -1, over all. */
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
    /* Activations, allocated for `max_rows` rows: residual stream, normed input, QKV or gate and up, attention output,
     * output of attention or MLP. */
    int max_rows;
    float *h, *x, *projected, *attended, *branch;
    ek_rows q8[MAX_Q8]; /* the current input, quantized once for each group size of the matrices that read it */
    item *items;
    float *scratch; /* [threads]: of MAX_QUERIES queries the scores, the values of one span and the values so far */
    size_t scratch_size;
    bool split_kv;                 /* threads share the spans of a query; then each span's result is in `partial`: */
    ek_partial_attention *partial; /* [rows, heads, spans] */
    float *partial_values;         /* [rows, heads, spans, head_dim] */
    int partial_rows, spans;       /* dimensions of `partial` */
    /* The running step: */
    int rows, chunks, item_count, wanted_count;
    const int32_t *tokens, *wanted;
    const chunk *chunk;
    float *logits;
} ek_model;

/* Index in `q8` of the input of matrix `i`: that of the first matrix with the same group size. */
static inline int q8_index(const ek_matrix *const *matrices, int i) {
    int first = 0;
    while (!matrices[first] || matrices[first]->group != matrices[i]->group) first++;
    return first;
}

/* Allocate the activations of `rows` rows; 0 on success. */
int ek_reserve_rows(ek_model *m, int rows);

#endif
