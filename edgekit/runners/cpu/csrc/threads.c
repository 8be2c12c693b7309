#define _POSIX_C_SOURCE 200112L
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* Nanoseconds that a thread waits awake before it sleeps. Between steps: as long as it takes to choose the next token. */
#define BETWEEN_STEPS 500000
/* At a barrier: about what sleeping and being woken costs. On a busy machine what is waited for needs the core. */
#define AT_BARRIERS 50000

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

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Wait until a counter is no longer what was seen of it. */
static void await(ek_pool *p, atomic_uint *counter, unsigned seen, int patience_ns) {
    int64_t until = 0;
    for (int turn = 1; atomic_load_explicit(counter, memory_order_acquire) == seen; turn++) {
        relax();
        if (turn % 16) continue;
        const int64_t now = now_ns();
        if (!until) until = now + patience_ns;
        if (now < until) continue;
        pthread_mutex_lock(&p->mutex);
        atomic_fetch_add(&p->sleeping, 1);
        while (atomic_load(counter) == seen) pthread_cond_wait(&p->wake, &p->mutex);
        atomic_fetch_sub(&p->sleeping, 1);
        pthread_mutex_unlock(&p->mutex);
        return;
    }
}

/* Let those go on that wait for a counter. One that is about to sleep says so and then looks at the counter again; here
 * it is raised, and then looked who sleeps: one of both sees the other. */
static void advance(ek_pool *p, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&p->sleeping)) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
    }
}

void ek_barrier(ek_pool *p) {
    const unsigned phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 < p->threads) {
        await(p, &p->phase, phase, AT_BARRIERS);
    } else {
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        advance(p, &p->phase);
    }
}

static void *serve(void *argument) {
    const place at = *(place *)argument;
    ek_pool *p = at.pool;
    free(argument);
    for (unsigned seen = 0;; seen++) {
        await(p, &p->step, seen, BETWEEN_STEPS);
        if (p->ending) return NULL;
        p->work(p->context, p, at.thread);
        ek_barrier(p);
    }
}

void ek_pool_run(ek_pool *p, ek_work *work, void *context) {
    p->work = work;
    p->context = context;
    atomic_store(&p->next, 0);
    if (p->threads > 1) advance(p, &p->step);
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
    if (p->threads > 1) advance(p, &p->step);
    for (int thread = 1; thread < p->threads; thread++) pthread_join(p->others[thread], NULL);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->wake);
    free(p->others);
    free(p);
}

int ek_pool_threads(const ek_pool *p) { return p->threads; }
