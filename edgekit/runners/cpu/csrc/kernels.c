/* The compute kernels (see kernels.h), compiled once per instruction set; EK_VARIANT names it.
 *
 * Batch invariance: every row of activations is computed by the same operations in the same order, whatever other rows
 * are in the batch. Dot products of codes are integers, exact in any order; floats are summed along groups, dimensions
 * or positions, never across rows. So batching, chunked prefill and verifying draft tokens do not change a bit.
 */
#include "kernels.h"
#include "vectors.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

/* ---- matrices ---- */

/* Scales or offsets of LANES rows: part `part` of a tile. */
INLINE vf load_factors(const uint8_t *p, int part, bool wide) {
    return wide ? vf_load((const float *)p + part * LANES) : vf_from_half((const half_t *)p + part * LANES);
}

INLINE int32_t load4(const int8_t *p) {
    int32_t x;
    memcpy(&x, p, 4);
    return x;
}

/* `rows` rows of activations times LANES rows of the matrix: part `part` of tile `tile`. Callers pass constants for
 * `rows`, `bits`, `group` and `has_offsets`, so that each combination is compiled into a specialized loop. */
INLINE void multiply_part(const ek_matrix *m, const ek_rows *x, int row, const int rows, int tile, int part,
                          const int bits, const int group, const bool has_offsets, float *y, size_t stride) {
    const bool wide = m->wide;
    const int size = group ? group : m->group;
    const size_t codes = (size_t)TILE * size * bits / 8, factor_bytes = (size_t)TILE * (wide ? 4 : 2);
    const uint8_t *p = m->data + (size_t)tile * m->groups * m->group_bytes;
    /* Zero points are subtracted after the dot product: sum (w - zero) x = sum w x - zero · sum x. */
    const int32_t correction = (has_offsets ? 0 : -m->zero_point) + (bits == 8 ? DOT8_BIAS : 0);
    const int8_t *columns[MAX_ROWS];
    vf sums[MAX_ROWS];
    for (int i = 0; i < rows; i++) {
        columns[i] = x->codes + (size_t)(row + i) * m->padded;
        sums[i] = vf_set(0);
    }
    for (int g = 0; g < m->groups; g++, p += m->group_bytes) {
        vi acc[MAX_ROWS];
        vf scale;
        for (int i = 0; i < rows; i++) {
            /* Without a correction, the sums of codes are never read. */
            acc[i] = vi_set(correction ? correction * x->code_sums[(size_t)(row + i) * m->groups + g] : 0);
        }
        if (bits == 4) {
            for (int k = 0; k < size; k += 8) {
                vb both = vb_load(p + k * 8 + part * LANES * 4), low = vb_low(both), high = vb_high(both);
                for (int i = 0; i < rows; i++) acc[i] = vb_dot4(acc[i], low, load4(columns[i] + k));
                for (int i = 0; i < rows; i++) acc[i] = vb_dot4(acc[i], high, load4(columns[i] + k + 4));
            }
        } else {
            for (int k = 0; k < size; k += 4) {
                vb all = vb_load(p + k * 16 + part * LANES * 4);
                for (int i = 0; i < rows; i++) acc[i] = vb_dot8(acc[i], all, load4(columns[i] + k));
            }
        }
        scale = load_factors(p + codes, part, wide);
        for (int i = 0; i < rows; i++) {
            vf product_scale = vf_mul(scale, vf_set(x->scales[(size_t)(row + i) * m->groups + g]));
            sums[i] = vf_fma(vf_from_int(acc[i]), product_scale, sums[i]);
        }
        if (has_offsets) {
            vf offset = load_factors(p + codes + factor_bytes, part, wide);
            for (int i = 0; i < rows; i++)
                sums[i] = vf_fma(offset, vf_set(x->sums[(size_t)(row + i) * m->groups + g]), sums[i]);
        }
        for (int i = 0; i < rows; i++) columns[i] += size;
    }
    const int column = tile * TILE + part * LANES;
    for (int i = 0; i < rows; i++) {
        float *to = y + (size_t)(row + i) * stride + column;
        if (m->bias) sums[i] = vf_add(sums[i], vf_load(m->bias + column));
        if (column + LANES <= m->out) {
            vf_store(to, sums[i]);
        } else if (column < m->out) {
            float last[LANES];
            vf_store(last, sums[i]);
            memcpy(to, last, sizeof(float) * (size_t)(m->out - column));
        }
    }
}

INLINE void multiply_as(const ek_matrix *m, const ek_rows *x, int rows, int first, int end, const int bits,
                        const int group, const bool has_offsets, float *y, size_t stride) {
    /* Rows of activations that stay in the CPU cache while the tiles stream past. */
    const int block = 128;
    for (int start = 0; start < rows; start += block) {
        const int stop = rows < start + block ? rows : start + block;
        for (int tile = first; tile < end; tile++)
            for (int part = 0; part < TILE / LANES; part++) {
                int row = start;
#define MULTIPLY(n) multiply_part(m, x, row, n, tile, part, bits, group, has_offsets, y, stride)
                for (; row + MAX_ROWS <= stop; row += MAX_ROWS) MULTIPLY(MAX_ROWS);
                /* The remaining rows share one pass, so that codes are unpacked once. */
                switch (stop - row) {
#if MAX_ROWS > 4
                    case 7: MULTIPLY(7); break;
                    case 6: MULTIPLY(6); break;
                    case 5: MULTIPLY(5); break;
                    case 4: MULTIPLY(4); break;
#endif
                    case 3: MULTIPLY(3); break;
                    case 2: MULTIPLY(2); break;
                    case 1: MULTIPLY(1); break;
                    default: break;
                }
#undef MULTIPLY
            }
    }
}

static void multiply(const ek_matrix *m, const ek_rows *x, int rows, int first, int end, float *y, size_t stride) {
    const bool has_offsets = m->zero_point < 0;
#define WITH(bits, group, has_offsets) multiply_as(m, x, rows, first, end, bits, group, has_offsets, y, stride)
#define OF(bits, group) (has_offsets ? WITH(bits, group, true) : WITH(bits, group, false))
    if (m->bits == 4) {
        if (m->group == 32) OF(4, 32);
        else OF(4, 0);
    } else {
        if (m->group == 32) OF(8, 32);
        else OF(8, 0);
    }
#undef OF
#undef WITH
}

static void quantize_row_q8(const float *x, int in, int group, int padded, const ek_rows *to, int row) {
    const int groups = padded / group;
    int8_t *codes = to->codes + (size_t)row * padded;
    for (int g = 0; g < groups; g++) {
        const int start = g * group, stop = start + group < in ? start + group : in;
        vf max_abs = vf_set(0);
        float amax, scale, inverse;
        int32_t code_sum = 0;
        for (int i = start; i < stop; i += LANES) max_abs = vf_max(max_abs, vf_abs(vf_load(x + i)));
        amax = vf_reduce_max(max_abs);
        scale = amax / 127.0f;
        inverse = amax > 0 ? 127.0f / amax : 0;
        for (int i = start; i < stop; i += LANES) vi_store_rounded(codes + i, vf_mul(vf_load(x + i), vf_set(inverse)));
        if (stop < start + group) memset(codes + stop, 0, (size_t)(start + group - stop));
        for (int i = start; i < stop; i++) code_sum += codes[i];
        to->scales[(size_t)row * groups + g] = scale;
        to->code_sums[(size_t)row * groups + g] = code_sum;
        to->sums[(size_t)row * groups + g] = scale * (float)code_sum;
    }
}

static void dequantize_row(const ek_matrix *m, int row, float scale, float *y) {
    const int tile = row / TILE, lane = row % TILE;
    const size_t codes = (size_t)TILE * m->group * m->bits / 8, factor_bytes = (size_t)TILE * (m->wide ? 4 : 2);
    const uint8_t *p = m->data + (size_t)tile * m->groups * m->group_bytes;
    for (int g = 0; g < m->groups; g++, p += m->group_bytes) {
        float scales[LANES], offsets[LANES], row_scale, offset;
        const int part = lane / LANES;
        vf_store(scales, load_factors(p + codes, part, m->wide));
        row_scale = scales[lane % LANES];
        if (m->zero_point < 0) {
            vf_store(offsets, load_factors(p + codes + factor_bytes, part, m->wide));
            offset = offsets[lane % LANES];
        } else {
            offset = -row_scale * (float)m->zero_point;
        }
        for (int k = 0; k < m->group && g * m->group + k < m->in; k++) {
            int code;
            if (m->bits == 4) code = p[k / 8 * 64 + lane * 4 + k % 4] >> (k % 8 < 4 ? 0 : 4) & 15;
            else code = p[k / 4 * 64 + lane * 4 + k % 4];
            y[g * m->group + k] = (row_scale * (float)code + offset) * scale;
        }
    }
}

/* ---- vectors ---- */

/* 1 / RMS, summed in LANES lanes. `size` is a multiple of TILE. */
INLINE float inverse_rms(const float *x, int size, float eps) {
    vf squares = vf_set(0);
    for (int i = 0; i < size; i += LANES) squares = vf_fma(vf_load(x + i), vf_load(x + i), squares);
    return 1.0f / sqrtf(vf_reduce_sum(squares) / (float)size + eps);
}

static void add_norm(float *h, const float *branch, const float *branch_norm, const float *norm, float eps, int size,
                     float *x) {
    if (branch && branch_norm) {
        const vf times = vf_set(inverse_rms(branch, size, eps));
        for (int i = 0; i < size; i += LANES) {
            vf normed = vf_mul(vf_mul(vf_load(branch + i), times), vf_load(branch_norm + i));
            vf_store(h + i, vf_add(vf_load(h + i), normed));
        }
    } else if (branch) {
        for (int i = 0; i < size; i += LANES) vf_store(h + i, vf_add(vf_load(h + i), vf_load(branch + i)));
    }
    if (x) {
        const vf times = vf_set(inverse_rms(h, size, eps));
        for (int i = 0; i < size; i += LANES)
            vf_store(x + i, vf_mul(vf_mul(vf_load(h + i), times), vf_load(norm + i)));
    }
}

static void rope(const float *x, const float *norm, float eps, const float *cosines, const float *sines, int rotary_dim,
                 int head_dim, float scale, float *y) {
    const int half = rotary_dim / 2;
    const float times = norm ? inverse_rms(x, head_dim, eps) : 1.0f;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[half + i];
        if (norm) a = a * times * norm[i], b = b * times * norm[half + i];
        y[i] = (a * cosines[i] - b * sines[i]) * scale;
        y[half + i] = (b * cosines[i] + a * sines[i]) * scale;
    }
    for (int i = rotary_dim; i < head_dim; i++) y[i] = (norm ? x[i] * times * norm[i] : x[i]) * scale;
}

/* The tanh approximation of GELU is x · sigmoid(2 u) with u = sqrt(2 / pi) · (x + 0.044715 x^3). */
static void gate(const float *g, const float *up, int size, bool gelu, float *y) {
    const vf one = vf_set(1);
    for (int i = 0; i < size; i += LANES) {
        vf x = vf_load(g + i), u = x;
        if (gelu) {
            u = vf_fma(vf_mul(vf_mul(x, x), x), vf_set(0.044715f), x);
            u = vf_mul(u, vf_set(1.5957691216057308f));
        }
        x = vf_div(x, vf_add(one, vf_exp(vf_sub(vf_set(0), u))));
        vf_store(y + i, vf_mul(x, vf_load(up + i)));
    }
}

static void to_half(const float *x, size_t count, half_t *y) {
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) vf_to_half(y + i, vf_load(x + i));
    if (i < count) {
        float rest[LANES] = {0};
        half_t halves[LANES];
        memcpy(rest, x + i, (count - i) * sizeof *x);
        vf_to_half(halves, vf_load(rest));
        memcpy(y + i, halves, (count - i) * sizeof *halves);
    }
}

/* ---- attention ---- */

static void store_value(const float *x, int head_dim, half_t *values, int position) {
    to_half(x, (size_t)head_dim, values + (size_t)position * head_dim);
}

static void store_key(const float *x, int head_dim, half_t *keys, int position) {
    half_t halves[TILE];
    half_t *to = keys + (size_t)(position / TILE) * head_dim * TILE + position % TILE;
    for (int d = 0; d < head_dim; d += TILE) {
        to_half(x + d, TILE, halves);
        for (int i = 0; i < TILE; i++) to[(size_t)(d + i) * TILE] = halves[i];
    }
}

/* Scores of `rows` queries for LANES positions of each of `tiles` tiles. With few queries, several tiles are computed
 * together to hide the latency of the multiply-adds. */
INLINE void score(const ek_attention *a, const int rows, const int tiles, int tile, int lane, int at) {
    const size_t next = (size_t)a->head_dim * TILE;
    const half_t *keys = a->keys + (size_t)tile * next + lane;
    vf sums[MAX_QUERIES][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < tiles; j++) sums[i][j] = vf_set(0);
    for (int d = 0; d < a->head_dim; d++)
        for (int j = 0; j < tiles; j++) {
            const vf key = vf_from_half(keys + j * next + (size_t)d * TILE);
            for (int i = 0; i < rows; i++) sums[i][j] = vf_fma(vf_set(a->queries[i][d]), key, sums[i][j]);
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < tiles; j++) vf_store(a->scores + i * SPAN + at + j * TILE + lane, sums[i][j]);
}

/* Sum the values of positions [from, to), weighted by `scores`, for `n` vectors of dimensions from `d` on. Positions
 * that a query does not see have a weight of 0. */
INLINE void weigh(const ek_attention *a, const int rows, const int n, int d, int start, int from, int to,
                  ek_partial_attention *partial) {
    vf sums[MAX_QUERIES][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < n; j++) sums[i][j] = vf_set(0);
    for (int p = from; p < to; p++) {
        vf value[4];
        for (int j = 0; j < n; j++) value[j] = vf_from_half(a->values + (size_t)p * a->head_dim + d + j * LANES);
        for (int i = 0; i < rows; i++) {
            const vf weight = vf_set(a->scores[i * SPAN + p - start]);
            for (int j = 0; j < n; j++) sums[i][j] = vf_fma(weight, value[j], sums[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        if (a->first[i] < to && a->end[i] > from)
            for (int j = 0; j < n; j++) vf_store(partial[i].values + d + j * LANES, sums[i][j]);
}

INLINE void attend_rows(const ek_attention *a, const int rows, int span, ek_partial_attention *partial) {
    const int start = span * SPAN;
    int from = start + SPAN, to = start;
    for (int i = 0; i < rows; i++) {
        if (a->first[i] < from) from = a->first[i];
        if (a->end[i] > to) to = a->end[i];
    }
    if (from < start) from = start;
    if (to > start + SPAN) to = start + SPAN;
    const int low = (from - start) / TILE * TILE, high = (to - start + TILE - 1) / TILE * TILE;
    const int tiles = rows == 1 ? 4 : rows <= 3 ? 2 : 1;
    int at = low;
    for (; at + tiles * TILE <= high; at += tiles * TILE)
        for (int lane = 0; lane < TILE; lane += LANES) score(a, rows, tiles, (start + at) / TILE, lane, at);
    for (; at < high; at += TILE)
        for (int lane = 0; lane < TILE; lane += LANES) score(a, rows, 1, (start + at) / TILE, lane, at);
    for (int i = 0; i < rows; i++) {
        float *scores = a->scores + i * SPAN;
        /* Visible positions, relative to the start of the span. */
        const int first = a->first[i] > start + low ? a->first[i] - start : low;
        const int end = a->end[i] < start + high ? a->end[i] - start : high;
        vf lane_max = vf_set(-INFINITY), sum = vf_set(0), max;
        if (first >= end) {
            for (int p = low; p < high; p++) scores[p] = 0;
            continue;
        }
        for (int p = low; p < first; p++) scores[p] = -INFINITY;
        for (int p = end; p < high; p++) scores[p] = -INFINITY;
        for (int p = low; p < high; p += LANES) lane_max = vf_max(lane_max, vf_load(scores + p));
        partial[i].max = vf_reduce_max(lane_max);
        max = vf_set(partial[i].max);
        for (int p = low; p < high; p += LANES) vf_store(scores + p, vf_exp(vf_sub(vf_load(scores + p), max)));
        for (int p = low; p < first; p++) scores[p] = 0;
        for (int p = end; p < high; p++) scores[p] = 0;
        for (int p = low; p < high; p += LANES) sum = vf_add(sum, vf_load(scores + p));
        partial[i].sum = vf_reduce_sum(sum);
    }
    int d = 0;
    if (rows <= 4)
        for (; d + 4 * LANES <= a->head_dim; d += 4 * LANES) weigh(a, rows, 4, d, start, from, to, partial);
    for (; d + 2 * LANES <= a->head_dim; d += 2 * LANES) weigh(a, rows, 2, d, start, from, to, partial);
    for (; d < a->head_dim; d += LANES) weigh(a, rows, 1, d, start, from, to, partial);
}

static void attend(const ek_attention *a, int span, ek_partial_attention partial[MAX_QUERIES]) {
    switch (a->rows) {
        case 1: attend_rows(a, 1, span, partial); break;
        case 2: attend_rows(a, 2, span, partial); break;
        case 3: attend_rows(a, 3, span, partial); break;
        case 4: attend_rows(a, 4, span, partial); break;
        case 5: attend_rows(a, 5, span, partial); break;
        case 6: attend_rows(a, 6, span, partial); break;
        case 7: attend_rows(a, 7, span, partial); break;
        default: attend_rows(a, 8, span, partial);
    }
}

INLINE float exp_of(float x) {
    float lanes[LANES];
    vf_store(lanes, vf_exp(vf_set(x)));
    return lanes[0];
}

static void merge(ek_partial_attention *partial, const ek_partial_attention *next, int head_dim) {
    const float max = partial->max > next->max ? partial->max : next->max;
    const float a = exp_of(partial->max - max), b = exp_of(next->max - max);
    for (int i = 0; i < head_dim; i += LANES)
        vf_store(partial->values + i,
                 vf_fma(vf_load(partial->values + i), vf_set(a), vf_mul(vf_load(next->values + i), vf_set(b))));
    partial->sum = partial->sum * a + next->sum * b;
    partial->max = max;
}

static void finish(const ek_partial_attention *partial, int head_dim, float *y) {
    const vf inverse = vf_set(1.0f / partial->sum);
    for (int i = 0; i < head_dim; i += LANES) vf_store(y + i, vf_mul(vf_load(partial->values + i), inverse));
}

const ek_kernels JOIN(ek_kernels_, EK_VARIANT);
const ek_kernels JOIN(ek_kernels_, EK_VARIANT) = {
    TEXT(EK_VARIANT), multiply, quantize_row_q8, add_norm,    rope,    gate,           attend,
    merge,            finish,   store_key,       store_value, to_half, dequantize_row,
};
