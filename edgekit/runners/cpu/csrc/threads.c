#define _POSIX_C_SOURCE 200112L
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* How long a thread spins before it sleeps. Between steps: about as long as sampling the next token takes. */
#define SPIN_BETWEEN_STEPS_NS 500000
/* At a barrier: about the cost of sleeping and waking. On a busy machine the awaited thread needs this core. */
#define SPIN_AT_BARRIERS_NS 50000

struct ek_pool {
    int threads;
    pthread_t *workers;
    ek_work *work;
    void *context;
    bool ending;
    /* Written by all threads, so each has its own cache line. */
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
} worker_args;

static inline void cpu_relax(void) {
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

/* Wait until a counter differs from `seen`: spin for `spin_ns`, then sleep. */
static void await(ek_pool *p, atomic_uint *counter, unsigned seen, int spin_ns) {
    int64_t until = 0;
    for (int spins = 1; atomic_load_explicit(counter, memory_order_acquire) == seen; spins++) {
        cpu_relax();
        if (spins % 16) continue;
        const int64_t now = now_ns();
        if (!until) until = now + spin_ns;
        if (now < until) continue;
        pthread_mutex_lock(&p->mutex);
        atomic_fetch_add(&p->sleeping, 1);
        while (atomic_load(counter) == seen) pthread_cond_wait(&p->wake, &p->mutex);
        atomic_fetch_sub(&p->sleeping, 1);
        pthread_mutex_unlock(&p->mutex);
        return;
    }
}

/* Increment a counter and wake the threads that wait for it. A waiter raises `sleeping` before it checks the counter
 * again; this increments the counter before it checks `sleeping`. So one of the two always sees the other's change. */
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
        await(p, &p->phase, phase, SPIN_AT_BARRIERS_NS);
    } else {
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
        advance(p, &p->phase);
    }
}

static void *worker_main(void *argument) {
    const worker_args args = *(worker_args *)argument;
    ek_pool *p = args.pool;
    free(argument);
    for (unsigned seen = 0;; seen++) {
        await(p, &p->step, seen, SPIN_BETWEEN_STEPS_NS);
        if (p->ending) return NULL;
        p->work(p->context, p, args.thread);
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
    *p = (ek_pool){.threads = 1, .workers = calloc((size_t)threads, sizeof(pthread_t))};
    if (!p->workers) {
        free(p);
        return NULL;
    }
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    for (int thread = 1; thread < threads; thread++) {
        worker_args *args = malloc(sizeof *args);
        if (!args) break;
        *args = (worker_args){p, thread};
        if (pthread_create(&p->workers[thread], NULL, worker_main, args)) {
            free(args);
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
    for (int thread = 1; thread < p->threads; thread++) pthread_join(p->workers[thread], NULL);
    pthread_mutex_destroy(&p->mutex);
    pthread_cond_destroy(&p->wake);
    free(p->workers);
    free(p);
}

int ek_pool_threads(const ek_pool *p) { return p->threads; }
