/* See request.h. */
#include "fs/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

#define SLAB_REQUESTS 64

struct request_slab {
	struct request_slab *next;
	struct request v[SLAB_REQUESTS];
};

void request_pool_init(struct request_pool *p)
{
	memset(p, 0, sizeof(*p));
	silt_lock_init(&p->lock);
}

void request_pool_free(struct request_pool *p)
{
	struct request_slab *s;
	while ((s = p->slabs)) {
		p->slabs = s->next;
		free(s);
	}
	silt_lock_destroy(&p->lock);
}

size_t request_pool_live(struct request_pool *p)
{
	silt_lock(&p->lock);
	size_t live = p->live;
	silt_unlock(&p->lock);
	return live;
}

static struct request *pool_get(struct request_pool *p)
{
	silt_lock(&p->lock);
	if (!p->free) {
		struct request_slab *s = calloc(1, sizeof(*s));
		if (!s) {
			silt_unlock(&p->lock);
			return NULL;
		}
		s->next = p->slabs;
		p->slabs = s;
		for (int i = 0; i < SLAB_REQUESTS; i++) {
			s->v[i].next = p->free;
			p->free = &s->v[i];
		}
	}
	struct request *r = p->free;
	p->free = r->next;
	p->live++;
	silt_unlock(&p->lock);
	return r;
}

void fs_count(struct fs *fs, enum fuse_kind kind)
{
	struct silt_metrics *m = fs->cfg.metrics;
	if (!m)
		return;
	silt_count(m, M_FUSE_REQUESTS, 1);
	atomic_fetch_add_explicit(&m->fuse[kind], 1, memory_order_relaxed);
}

/* Everything but the claim word (a late interrupt may be looking at it) starts from zero. */
static void request_reset(struct request *r)
{
	uint64_t serial = atomic_load(&r->claim) / 2 + 1;
	atomic_store(&r->claim, serial * 2 + 1);
	memset(&r->arming, 0, sizeof(*r) - offsetof(struct request, arming));
	atomic_store(&r->claim, serial * 2);
}

struct request *request_begin(fuse_req_t req, enum fuse_kind kind, fuse_ino_t ino)
{
	struct fs *fs = fuse_req_userdata(req);
	fs_count(fs, kind);
	if (ino >= FS_DAMAGED_NODES) {
		fuse_reply_err(req, EIO);
		return NULL;
	}
	struct request *r = pool_get(&fs->requests);
	if (!r) {
		fuse_reply_err(req, ENOMEM);
		return NULL;
	}
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	request_reset(r);
	atomic_store(&r->req, req);
	r->fs = fs;
	r->kind = kind;
	if (kind == KIND_OPEN)
		atomic_fetch_add(&fs->nodes.opening, 1);
	r->ino = ino;
	r->pid = ctx->pid;
	r->uid = ctx->uid;
	r->gid = ctx->gid;
	r->pieces = r->inline_pieces;
	r->cap_pieces = REQUEST_INLINE_PIECES;
	return r;
}

/* Called by libfuse on the thread that read the INTERRUPT; `req` is alive as long as this runs, so
 * when `r` serves `req` now, its serial is the one that was read before or an older one. */
static void on_interrupt(fuse_req_t req, void *data)
{
	struct request *r = data;
	uint64_t serial = atomic_load(&r->claim) / 2;
	if (atomic_load(&r->req) != req)
		return;
	atomic_store(&r->interrupted, true);
	if (!atomic_load(&r->arming))
		janitor_interrupted(r->fs, r, serial);
}

void request_arm(struct request *r)
{
	fuse_req_t req = atomic_load(&r->req);
	/* libfuse must not see a reply while it is inside this call. */
	atomic_store(&r->arming, true);
	fuse_req_interrupt_func(req, on_interrupt, r);
	atomic_store(&r->arming, false);
	if (atomic_load(&r->interrupted))
		janitor_interrupted(r->fs, r, atomic_load(&r->claim) / 2);
}

bool request_claim(struct request *r)
{
	uint64_t open = atomic_load(&r->claim);
	return open % 2 == 0 && atomic_compare_exchange_strong(&r->claim, &open, open + 1);
}

bool request_claim_serial(struct request *r, uint64_t serial)
{
	uint64_t open = serial * 2;
	return atomic_compare_exchange_strong(&r->claim, &open, open + 1);
}

bool request_answered(const struct request *r)
{
	return atomic_load(&r->claim) % 2 == 1;
}

void request_free(struct request *r)
{
	struct fs *fs = r->fs;
	if (r->kind == KIND_OPEN)
		atomic_fetch_sub(&fs->nodes.opening, 1);
	if (r->node && r->kind == KIND_GETATTR) {
		atomic_store(&r->node->getattr_ns, silt_now_ns());
		atomic_fetch_sub(&r->node->getattrs, 1);
	}
	if (r->node)
		node_put(fs, r->node);
	if (r->node2)
		node_put(fs, r->node2);
	if (r->handle)
		handle_put(r->handle);
	free(r->moved[0]);
	free(r->moved[1]);
	free(r->buf);
	free(r->page);
	free(r->extents);
	if (r->pieces != r->inline_pieces)
		free(r->pieces);
	atomic_store(&r->req, NULL);
	silt_lock(&fs->requests.lock);
	r->next = fs->requests.free;
	fs->requests.free = r;
	fs->requests.live--;
	silt_unlock(&fs->requests.lock);
}

/* Was the inode found by a path, by somebody who has no descriptor of it? */
static bool found_by_path(const struct request *r)
{
	switch (r->kind) {
	case KIND_GETATTR:
	case KIND_SETATTR: return r->handle == NULL;
	case KIND_OPEN:
	case KIND_OPENDIR:
	case KIND_READLINK:
	case KIND_GETXATTR:
	case KIND_SETXATTR:
	case KIND_LISTXATTR:
	case KIND_REMOVEXATTR: return true;
	default: return false;
	}
}

void request_end_err(struct request *r, int err)
{
	/* It has gone since the kernel looked at its name, which may name another one now: ESTALE makes
	 * the kernel look at the names again, without what it has kept, before it tells anyone. */
	if (err == -ENOENT && found_by_path(r))
		err = -ESTALE;
	if (request_claim(r))
		fuse_reply_err(atomic_load(&r->req), -err);
	request_free(r);
}
