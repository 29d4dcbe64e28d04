/* The threads that run operations across shards, and what became of lists that ended in the middle.
 */
#include "meta/tx.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TX_THREADS   8
#define AGAIN_US     2000
#define AGAIN_MAX_US 100000

/* A transaction of ours whose list ended in the middle. */
struct stuck {
	struct stuck *next;
	char tx[40];
};

struct tx_pool {
	struct silt_lock lock; /* guards the queue, stuck and stopping */
	struct stuck *stuck;
	struct silt_cond wake;
	struct tx_job *head, **tail;
	bool stopping;
	unsigned n;
	pthread_t threads[TX_THREADS];
};

static void *tx_main(void *arg)
{
	struct tx_pool *p = arg;
	pthread_setname_np(pthread_self(), "silt-tx");
	silt_lock(&p->lock);
	for (;;) {
		while (!p->head && !p->stopping)
			silt_cond_wait(&p->wake, &p->lock);
		struct tx_job *j = p->head;
		if (!j)
			break;
		p->head = j->next;
		if (!p->head)
			p->tail = &p->head;
		silt_unlock(&p->lock);
		j->run(j);
		free(j);
		silt_lock(&p->lock);
	}
	silt_unlock(&p->lock);
	return NULL;
}

int tx_open(struct meta *m)
{
	struct tx_pool *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	silt_lock_init(&p->lock);
	silt_cond_init(&p->wake);
	p->tail = &p->head;
	m->tx = p;
	unsigned want = m->volume.shards > 1 ? TX_THREADS : 1;
	while (p->n < want) {
		int rc = -pthread_create(&p->threads[p->n], NULL, tx_main, p);
		if (rc)
			return rc;
		p->n++;
	}
	return 0;
}

void tx_close(struct meta *m)
{
	struct tx_pool *p = m->tx;
	silt_lock(&p->lock);
	p->stopping = true;
	silt_cond_broadcast(&p->wake);
	silt_unlock(&p->lock);
	for (unsigned i = 0; i < p->n; i++)
		pthread_join(p->threads[i], NULL);
	while (p->stuck) { /* their intents are seen to when the session is closed, or by others */
		struct stuck *s = p->stuck;
		p->stuck = s->next;
		free(s);
	}
	silt_lock_destroy(&p->lock);
	silt_cond_destroy(&p->wake);
	free(p);
	m->tx = NULL;
}

void tx_note_stuck(struct op *op)
{
	struct tx_pool *p = op->m->tx;
	struct stuck *s = malloc(sizeof(*s));
	if (!s)
		return; /* seen to when the session is closed */
	memcpy(s->tx, op->tx, sizeof(s->tx));
	silt_lock(&p->lock);
	s->next = p->stuck;
	p->stuck = s;
	silt_unlock(&p->lock);
}

void tx_end(struct op *op, struct meta_reply *r)
{
	if (r->err == -ENOTCONN) {
		tx_note_stuck(op);
		r->err = -EIO;
	}
	if (r->err == -EAGAIN)
		r->err = -EBUSY;
	op_end(op, r);
}

void tx_finish_stuck(struct meta *m)
{
	struct tx_pool *p = m->tx;
	silt_lock(&p->lock);
	struct stuck *todo = p->stuck;
	p->stuck = NULL;
	silt_unlock(&p->lock);
	while (todo) {
		struct stuck *s = todo;
		todo = s->next;
		if (tx_resume(m, s->tx) != -ENOTCONN) {
			free(s);
			continue;
		}
		silt_lock(&p->lock);
		s->next = p->stuck;
		p->stuck = s;
		silt_unlock(&p->lock);
	}
}

void tx_submit(struct op *op, void (*run)(struct tx_job *), const struct tx_job *with)
{
	struct tx_job *j = malloc(sizeof(*j));
	if (!j) {
		op_fail(op, -ENOMEM);
		return;
	}
	*j = with ? *with : (struct tx_job){ 0 };
	j->op = op;
	j->run = run;
	j->next = NULL;
	struct tx_pool *p = op->m->tx;
	silt_lock(&p->lock);
	*p->tail = j;
	p->tail = &j->next;
	silt_cond_signal(&p->wake);
	silt_unlock(&p->lock);
}

/* Of uneven length: two that are in each other's way must not meet for ever. */
static unsigned pause_us(unsigned tries)
{
	unsigned us = AGAIN_US << (tries < 6 ? tries : 6);
	us = us < AGAIN_MAX_US ? us : AGAIN_MAX_US;
	return us / 2 + (unsigned)(silt_now_ns() / 1000 % us);
}

bool tx_pause(unsigned *tries)
{
	if (*tries >= TX_TRIES)
		return false;
	usleep(pause_us(*tries));
	++*tries;
	return true;
}

bool tx_anew(struct op *op)
{
	if (!tx_pause(&op->tries))
		return false;
	op_resubmit(op);
	return true;
}

/* Many operations may wait at once: each waits until its own time, not after the others. */
static void run_again(struct tx_job *j)
{
	uint64_t now = silt_now_ns();
	if (j->due > now)
		usleep((useconds_t)((j->due - now) / 1000));
	op_resubmit(j->op);
}

void tx_again(struct op *op)
{
	if (op->tries >= TX_TRIES)
		op_fail(op, -EBUSY);
	else
		tx_submit(op, run_again,
		          &(struct tx_job){ .due = silt_now_ns() +
		                                   pause_us(op->tries++) * (uint64_t)1000 });
}
