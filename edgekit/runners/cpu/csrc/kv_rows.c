/* Reads and writes the KV cache in rows: [layers, keys and values, KV heads, count, head_dim]. */
#include "common.h"

#include <string.h>

#include "model.h"

static uint16_t *head_of(const ek_model *m, uint16_t *array, int slot, int head) {
    return array + slot * m->slot_stride + (size_t)head * m->positions * m->head_dim;
}

/* Copy positions [start, start + count) of a slot to `rows`, or from `rows` if `write`. */
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
