#define _POSIX_C_SOURCE 200112L
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

/* Turns of waiting before a thread lets others run, and, between steps, before it sleeps (some tenths of a
 * millisecond: as long as it takes to choose the next token). */
#define PATIENCE 4000
#define AWAKE 40000

struct ek_pool {
    int threads;
    pthread_t *others;
    ek_work *work;
    void *context;
    bool ending;
    /* Each on a cache line of its own: they are written by all threads. */
    _Alignas(64) atomic_int next;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint phase;
    _Alignas(64) atomic_uint step;
    atomic_int sleeping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

typedef struct {
    ek_pool *pool;
    int thread;
} place;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

int ek_next(ek_pool *p, int count) { return atomic_fetch_add_explicit(&p->next, count, memory_order_relaxed); }

void ek_barrier(ek_pool *p) {
    const unsigned phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 == p->threads) {
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&p->phase, phase + 1, memory_order_release);
        return;
    }
    for (int turn = 0; atomic_load_explicit(&p->phase, memory_order_acquire) == phase; turn++) {
        relax();
        if (turn >= PATIENCE) sched_yield();
    }
}

static void *serve(void *argument) {
    place at = *(place *)argument;
    ek_pool *p = at.pool;
    unsigned seen = 0;
    free(argument);
    for (;;) {
        for (int turn = 0; turn < AWAKE; turn++) {
            if (atomic_load_explicit(&p->step, memory_order_acquire) != seen) break;
            relax();
        }
        if (atomic_load_explicit(&p->step, memory_order_acquire) == seen) {
            pthread_mutex_lock(&p->mutex);
            atomic_fetch_add(&p->sleeping, 1);
            while (atomic_load(&p->step) == seen) pthread_cond_wait(&p->wake, &p->mutex);
            atomic_fetch_sub(&p->sleeping, 1);
            pthread_mutex_unlock(&p->mutex);
        }
        seen++;
        if (p->ending) return NULL;
        p->work(p->context, p, at.thread);
        ek_barrier(p);
    }
}

static void begin(ek_pool *p) {
    atomic_fetch_add(&p->step, 1);
    if (atomic_load(&p->sleeping)) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
    }
}

void ek_pool_run(ek_pool *p, ek_work *work, void *context) {
    p->work = work;
    p->context = context;
    atomic_store(&p->next, 0);
    if (p->threads > 1) begin(p);
    work(context, p, 0);
    ek_barrier(p);
}

ek_pool *ek_pool_new(int threads) {
    ek_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p) return NULL;
    *p = (ek_pool){.threads = 1, .others = calloc((size_t)threads, sizeof(pthread_t))};
    if (!p->others) {
        free(p);
        return NULL;
    }
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int thread = 1; thread < threads; thread++) {
        place *at = malloc(sizeof *at);
        if (!at) break;
        *at = (place){p, thread};
        if (pthread_create(&p->others[thread], NULL, serve, at)) {
            free(at);
            break;
        }
        p->threads = thread + 1;
    }
    return p;
}

void ek_pool_free(ek_pool *p) {
    if (!p) return;
    p->ending = true;
    if (p->threads > 1) begin(p);
    for (int thread = 1; thread < p->threads; thread++) pthread_join(p->others[thread], NULL);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->wake);
    free(p->others);
    free(p);
}

int ek_pool_threads(const ek_pool *p) { return p->threads; }
