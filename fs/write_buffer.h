/* Written bytes of one file that are not in the object store yet.
 *
 *	file    0        16M       32M                 64M (window)
 *	dirty   |   |#####|   |##|                      grows, is overwritten in place
 *	sent    |#########|####|                        immutable, on its way to a pack
 *
 * A segment is a run of file bytes in one malloced buffer. It is at most PACK_TARGET long and lies
 * in one window of SILT_WINDOW bytes, so that it becomes exactly one extent. Dirty segments don't
 * overlap each other, nor do sent ones; a dirty one may lie over sent ones and then holds the newer
 * bytes. It is not sent before these are done: commits of overlapping bytes stay in order. A
 * segment whose upload failed stays among the sent (state SEGMENT_FAILED), holds everything newer
 * back, and is sent again by write_buffer_retry(), until it is stored or given up.
 *
 * A buffer may hold appends instead: records that go behind the file's end wherever Redis finds that,
 * whole. A record then lies in one segment (which may cross a window's border), and one segment is on
 * its way at a time, so that records keep their order; where it was put is known when it is done, and
 * what follows moves along. Appends and other writes are never in a buffer together.
 *
 * Not thread-safe: the owner locks (fs/node.h: the node's lock). Nothing here does I/O: what is to
 * be sent is handed out as a chain, and the owner submits it after it has let go of its lock. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/big_buffers.h"
#include "cache/cache.h"

enum segment_state { SEGMENT_DIRTY, SEGMENT_SENT, SEGMENT_FAILED };

struct segment {
	void *owner;           /* as given to write_buffer_init() */
	struct segment *chain; /* next to be submitted */
	uint8_t *data;
	uint64_t off;
	uint32_t len, cap;
	bool big;                 /* `data` is of pool->big */
	enum segment_state state;
	int err;                  /* why it failed last; stays while it is sent again */
	uint64_t epoch;           /* of the buffer when the segment was made */
	struct cache_write write; /* done and arg are the owner's to set */
};

/* Segments sorted by offset, none overlapping. */
struct segment_list {
	struct segment **v;
	size_t n, cap;
};

/* Memory of all buffers of a mount. */
struct write_pool {
	struct big_buffers *big;   /* for segments that become large; NULL: malloc() */
	uint64_t budget;           /* bytes */
	atomic_uint_fast64_t used; /* bytes allocated for segments */
	atomic_uint_fast64_t sent; /* of these, in segments on their way */
};

struct write_buffer {
	struct write_pool *pool;
	void *owner;
	silt_ino ino;
	struct segment_list dirty, sent;
	size_t failed;  /* of `sent`: with err set */
	bool appends;   /* what is in it; of no meaning when it is empty */
	bool drop_suid; /* a writer of what is dirty had no CAP_FSETID; sent segments say it themselves */
	uint64_t epoch; /* new segments get it; a flush raises it: older segments are what it waits
	                   for */
	struct silt_time mtime; /* of the last write */
};

void write_buffer_init(struct write_buffer *b, struct write_pool *pool, silt_ino ino, void *owner);

/* Frees everything; nothing may be on its way. */
void write_buffer_free(struct write_buffer *b);

static inline bool write_buffer_empty(const struct write_buffer *b)
{
	return b->dirty.n == 0 && b->sent.n == 0;
}

/* Takes `len` bytes. -ENOMEM: the bytes before *taken are in. */
int write_buffer_put(struct write_buffer *b, uint64_t off, const void *data, size_t len,
                     struct silt_time now, size_t *taken);

/* Takes a record whole that is appended at `off`, the end of everything known. -EAGAIN: the buffer has
 * other writes (and write_buffer_put() must not be called while it has appends); -ENOMEM. `fresh`: not
 * into a segment of an older epoch. */
int write_buffer_append(struct write_buffer *b, uint64_t off, const void *data, size_t len,
                        struct silt_time now, bool fresh);

/* Before bytes are put: whether their writer has no CAP_FSETID, so that set-id bits go with them. */
void write_buffer_note_writer(struct write_buffer *b, bool drop_suid);

/* Do bytes of such a writer wait to be stored? */
bool write_buffer_drops_suid(const struct write_buffer *b);

/* What is at `off`: returns where the run that begins there ends (at most `end`). *data is its
 * bytes, or NULL when nothing is buffered in it. */
uint64_t write_buffer_run(const struct write_buffer *b, uint64_t off, uint64_t end,
                          const uint8_t **data);

/* The end of the last buffered byte; 0 when empty. */
uint64_t write_buffer_end(const struct write_buffer *b);

enum seal_mode {
	SEAL_FULL, /* segments that can't grow any more */
	SEAL_ALL,
};

/* Marks dirty segments that nothing holds back as sent and puts them on `chain`. Those made after
 * `epoch` stay. The owner must hand each to cache_write(). */
void write_buffer_seal(struct write_buffer *b, enum seal_mode mode, uint64_t epoch,
                       struct segment **chain);

/* Puts failed segments on the chain again. */
void write_buffer_retry(struct write_buffer *b, struct segment **chain);

/* A sent segment is done. err 0: it is freed. Otherwise it stays as failed, or, when `drop`, is
 * freed all the same. */
void write_buffer_complete(struct write_buffer *b, struct segment *s, int err, bool drop);

/* After an append was put elsewhere: everything in the buffer moves by `delta` bytes. */
void write_buffer_shift(struct write_buffer *b, int64_t delta);

/* Forgets dirty and failed bytes at and past `size`; sent ones stay. Returns how many went. */
uint64_t write_buffer_truncate(struct write_buffer *b, uint64_t size);

/* Frees the segments that failed and are not on their way again. Returns how many bytes they held.
 * What they held back can be sealed now. */
uint64_t write_buffer_give_up(struct write_buffer *b);

/* How a flush up to `epoch` stands: -EINPROGRESS, 0 (all stored), or the error of a failed segment
 * once nothing older is on its way. */
int write_buffer_status(const struct write_buffer *b, uint64_t epoch);
