/* A thread pool: the calling thread and its workers run one function together, in phases separated by barriers. */
#ifndef EK_THREADS_H
#define EK_THREADS_H

typedef struct ek_pool ek_pool;
typedef void ek_work(void *context, ek_pool *pool, int thread);

ek_pool *ek_pool_new(int threads);
void ek_pool_free(ek_pool *);
int ek_pool_threads(const ek_pool *);

/* Run `work` on every thread, the caller's included; returns when all have finished. */
void ek_pool_run(ek_pool *, ek_work *, void *context);

/* Within `work`: claim the next `count` jobs of this phase and return the first; no job is handed out twice. */
int ek_next(ek_pool *, int count);

/* A loop over the jobs of a phase, shared by all threads of `pool`. */
#define JOBS(index, count) for (int index; (index = ek_next(pool, 1)) < (count);)

/* Within `work`: wait for all threads; job numbers restart at 0. */
void ek_barrier(ek_pool *);

#endif
