/* See slot_table.h for the format. Loading reads the whole file with one read and checks every
 * entry as it is asked for: 32 MiB and a million short hashes for a million slots. */
#include "cache/slot_table.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "meta/varint.h"

#define PUT_MOST 128u /* entries of one write: 4 KiB */

static const char magic[8] = "SILTSLOT";

/* See slot_table.h for why. Ascending; the last one is for all that is larger. */
static const struct {
	uint64_t most; /* bytes of cache */
	uint32_t slot_size;
} sizes[] = {
	{ (uint64_t)64 << 30, 64u << 10 },
	{ (uint64_t)512 << 30, 256u << 10 },
	{ UINT64_MAX, 1u << 20 },
};

uint32_t slot_size_for(uint64_t bytes)
{
	unsigned i = 0;
	while (bytes > sizes[i].most)
		i++;
	return sizes[i].slot_size;
}

bool slot_size_valid(uint32_t size)
{
	return size >= SLOT_SIZE_MIN && size <= SLOT_SIZE_MAX && (size & (size - 1)) == 0;
}

void slot_header_encode(const struct slot_header *h, uint8_t out[64])
{
	memset(out, 0, 64);
	memcpy(out, magic, 8);
	uint8_t *p = silt_put_le(out + 8, h->version, 4);
	p = silt_put_le(p, h->slot_size, 4);
	p = silt_put_le(p, h->volume, 8);
	p = silt_put_le(p, h->nonce, 8);
	silt_put_le(p, h->slots, 4);
	silt_put_le(out + 56, XXH3_64bits(out, 56), 8);
}

int slot_header_decode(const uint8_t in[64], struct slot_header *out)
{
	struct silt_reader r = silt_reader_of(in, 64);
	if (memcmp(silt_get_bytes(&r, 8), magic, 8) != 0)
		return -EBADMSG;
	struct slot_header h = { 0 };
	h.version = (uint32_t)silt_get_le(&r, 4);
	h.slot_size = (uint32_t)silt_get_le(&r, 4);
	h.volume = silt_get_le(&r, 8);
	h.nonce = silt_get_le(&r, 8);
	h.slots = (uint32_t)silt_get_le(&r, 4);
	struct silt_reader sum = silt_reader_of(in + 56, 8);
	if (silt_get_le(&sum, 8) != XXH3_64bits(in, 56))
		return -EBADMSG;
	*out = h;
	return 0;
}

static uint32_t entry_check(const struct slot_header *h, const uint8_t *in)
{
	uint64_t x = XXH3_64bits_withSeed(in, TABLE_ENTRY - 4, h->volume ^ h->nonce);
	return (uint32_t)(x ^ (x >> 32));
}

void slot_entry_encode(const struct slot_header *h, uint32_t slot, const struct slot_entry *e,
                       uint8_t out[TABLE_ENTRY])
{
	uint8_t *p = silt_put_le(out, e->pack, 8);
	p = silt_put_le(p, e->piece, 4);
	p = silt_put_le(p, e->pack_len, 4);
	p = silt_put_le(p, e->valid, 2);
	*p++ = e->freq;
	*p++ = 0;
	p = silt_put_le(p, slot, 4);
	p = silt_put_le(p, 0, 4);
	silt_put_le(p, entry_check(h, out), 4);
}

bool slot_entry_decode(const struct slot_header *h, uint32_t slot, const uint8_t in[TABLE_ENTRY],
                       struct slot_entry *out)
{
	struct silt_reader r = silt_reader_of(in, TABLE_ENTRY);
	struct slot_entry e = { 0 };
	memset(out, 0, sizeof(*out));
	e.pack = silt_get_le(&r, 8);
	if (e.pack == 0 || !slot_size_valid(h->slot_size))
		return false;
	e.piece = (uint32_t)silt_get_le(&r, 4);
	e.pack_len = (uint32_t)silt_get_le(&r, 4);
	e.valid = (uint16_t)silt_get_le(&r, 2);
	e.freq = (uint8_t)silt_get_le(&r, 1);
	silt_get_le(&r, 1);
	uint32_t number = (uint32_t)silt_get_le(&r, 4);
	silt_get_le(&r, 4);
	uint32_t check = (uint32_t)silt_get_le(&r, 4);
	if (check != entry_check(h, in) || number != slot)
		return false;
	uint16_t full = slot_full_mask(h->slot_size, e.pack_len, e.piece);
	if (e.valid == 0 || (e.valid & ~full) != 0 || e.freq > 3)
		return false;
	*out = e;
	return true;
}

uint16_t slot_full_mask(uint32_t slot_size, uint32_t pack_len, uint32_t piece)
{
	uint64_t start = (uint64_t)piece * slot_size;
	uint32_t chunk = slot_size / SLOT_CHUNKS;
	if (start >= pack_len)
		return 0;
	uint64_t left = pack_len - start;
	if (left >= slot_size)
		return 0xffff;
	unsigned chunks = (unsigned)((left + chunk - 1) / chunk);
	return (uint16_t)((1u << chunks) - 1);
}

static int read_full(int fd, void *buf, size_t len, off_t off, size_t *got)
{
	*got = 0;
	while (*got < len) {
		ssize_t n = pread(fd, (char *)buf + *got, len - *got, off + (off_t)*got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		*got += (size_t)n;
	}
	return 0;
}

static int write_header(struct slot_table *t)
{
	uint8_t buf[64];
	slot_header_encode(&t->h, buf);
	return pwrite(t->fd, buf, sizeof(buf), 0) == (ssize_t)sizeof(buf) ? 0 : -EIO;
}

/* Decides whether the table that is there can be taken over. 1: make a new one (`why` says why,
 * unless there was none), 0: take it, else refused. */
static int judge_header(const uint8_t *in, size_t len, const struct slot_want *want,
                        struct slot_header *h, char why[160], struct silt_err *err)
{
	if (len == 0)
		return 1;
	if (len < 64 || slot_header_decode(in, h) < 0) {
		snprintf(why, 160, "its header is damaged");
		return 1;
	}
	if (h->volume != want->volume)
		return silt_fail(err, -EEXIST,
		                 "the cache directory holds data of volume %016" PRIx64
		                 ", not of %016" PRIx64 "; give each volume its own directory, or "
		                 "empty this one",
		                 h->volume, want->volume);
	if (h->version > SLOT_TABLE_VERSION)
		return silt_fail(err, -EEXIST,
		                 "the cache directory was written by a newer siltfs (table version "
		                 "%u, this one knows %u); use that siltfs, or empty the directory",
		                 h->version, SLOT_TABLE_VERSION);
	if (h->version < SLOT_TABLE_VERSION) {
		snprintf(why, 160, "it is of an older version (%u)", h->version);
		return 1;
	}
	if (h->slot_size != want->slot_size) {
		snprintf(why, 160, "its slots are of %u KiB, a cache of this size needs %u KiB",
		         h->slot_size >> 10, want->slot_size >> 10);
		return 1;
	}
	return 0;
}

uint32_t slot_table_slot_size(int dirfd, const char *name)
{
	uint8_t head[64];
	struct slot_header h;
	size_t got;
	int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	int rc = read_full(fd, head, sizeof(head), 0, &got);
	close(fd);
	if (rc < 0 || got < sizeof(head) || slot_header_decode(head, &h) < 0 ||
	    h.version != SLOT_TABLE_VERSION || !slot_size_valid(h.slot_size))
		return 0;
	return h.slot_size;
}

/* Makes the file exactly as long as `slots` entries need; what is new reads as zeros (free). */
static int resize(struct slot_table *t, uint32_t slots, bool fresh, struct silt_err *err)
{
	off_t size = TABLE_HEADER + (off_t)slots * TABLE_ENTRY;
	if (fresh && ftruncate(t->fd, 0) < 0)
		return silt_fail(err, -errno, "cannot clear the slot table: %s", strerror(errno));
	if (ftruncate(t->fd, size) < 0)
		return silt_fail(err, -errno, "cannot size the slot table: %s", strerror(errno));
	int rc = posix_fallocate(t->fd, 0, size);
	if (rc != 0 && rc != EOPNOTSUPP && rc != EINVAL)
		return silt_fail(err, -rc, "no room for the slot table (%lld bytes): %s",
		                 (long long)size, strerror(rc));
	t->h.slots = slots;
	if (write_header(t) < 0)
		return silt_fail(err, -EIO, "cannot write the slot table");
	return 0;
}

int slot_table_open(int dirfd, const char *name, const struct slot_want *want, bool *fresh,
                    char why[160], struct slot_table *out, struct silt_err *err)
{
	assert(slot_size_valid(want->slot_size));
	struct slot_table t = { .fd = -1 };
	uint8_t head[64];
	size_t got = 0;
	why[0] = 0;
	t.fd = openat(dirfd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (t.fd < 0)
		return silt_fail(err, -errno, "cannot open the slot table: %s", strerror(errno));
	int rc = read_full(t.fd, head, sizeof(head), 0, &got);
	if (rc == 0)
		rc = judge_header(head, got, want, &t.h, why, err);
	else
		silt_fail(err, rc, "cannot read the slot table: %s", strerror(-rc));
	if (rc < 0)
		goto fail;
	*fresh = rc == 1;
	if (*fresh) {
		t.h = (struct slot_header){ .version = SLOT_TABLE_VERSION,
			                    .slot_size = want->slot_size,
			                    .volume = want->volume };
		if (getrandom(&t.h.nonce, sizeof(t.h.nonce), 0) < 0)
			t.h.nonce = (uint64_t)time(NULL);
	}
	rc = resize(&t, want->slots, *fresh, err);
	if (rc < 0)
		goto fail;
	t.entries = calloc(want->slots, TABLE_ENTRY);
	rc = t.entries ? 0 : -ENOMEM;
	if (rc == 0 && !*fresh)
		rc = read_full(t.fd, t.entries, (size_t)want->slots * TABLE_ENTRY, TABLE_HEADER,
		               &got);
	if (rc < 0) {
		silt_fail(err, rc, "cannot load the slot table: %s", strerror(-rc));
		goto fail;
	}
	*out = t;
	return 0;
fail:
	slot_table_close(&t);
	return rc;
}

void slot_table_close(struct slot_table *t)
{
	if (t->fd >= 0)
		close(t->fd);
	t->fd = -1;
	slot_table_loaded(t);
}

bool slot_table_entry(const struct slot_table *t, uint32_t slot, struct slot_entry *out)
{
	return slot_entry_decode(&t->h, slot, t->entries + (size_t)slot * TABLE_ENTRY, out);
}

void slot_table_loaded(struct slot_table *t)
{
	free(t->entries);
	t->entries = NULL;
}

int slot_table_put(struct slot_table *t, uint32_t slot, const struct slot_entry *e, uint32_t n)
{
	uint8_t buf[PUT_MOST * TABLE_ENTRY] = { 0 };
	for (uint32_t done = 0, now; done < n; done += now) {
		now = n - done < PUT_MOST ? n - done : PUT_MOST;
		for (uint32_t i = 0; e && i < now; i++)
			slot_entry_encode(&t->h, slot + done + i, &e[done + i],
			                  buf + (size_t)i * TABLE_ENTRY);
		off_t off = TABLE_HEADER + ((off_t)slot + done) * TABLE_ENTRY;
		ssize_t len = (ssize_t)now * TABLE_ENTRY;
		if (pwrite(t->fd, buf, (size_t)len, off) != len)
			return -EIO;
	}
	return 0;
}

int slot_table_sync(struct slot_table *t)
{
	return fdatasync(t->fd) < 0 ? -errno : 0;
}
