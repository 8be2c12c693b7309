/* A few threads that take the jobs of one phase after another, together with the thread that calls. */
#ifndef EK_THREADS_H
#define EK_THREADS_H

typedef struct ek_pool ek_pool;
typedef void ek_work(void *context, ek_pool *pool, int thread);

ek_pool *ek_pool_new(int threads);
void ek_pool_free(ek_pool *);
int ek_pool_threads(const ek_pool *);

/* Run `work` in every thread, the caller's included; returns when all have. */
void ek_pool_run(ek_pool *, ek_work *, void *context);

/* Within `work`: the first of the next `count` jobs of this phase; each is given out once. */
int ek_next(ek_pool *, int count);

/* Within `work`: wait for all threads; the jobs of the next phase start at 0. */
void ek_barrier(ek_pool *);

#endif
