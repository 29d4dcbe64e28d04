/* libFuzzer: extent logs of arbitrary bytes. What decodes must survive encoding again, and a map
 * must stay sorted, without overlaps or holes, whatever was added and cut off. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "meta/extent.h"
#include "meta/types.h"

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x))                                                                          \
			abort();                                                                   \
	} while (0)

static bool same(const struct silt_extent *a, const struct silt_extent *b)
{
	return a->off == b->off && a->len == b->len && a->pack == b->pack &&
	       a->pack_off == b->pack_off && a->stored == b->stored && a->skip == b->skip &&
	       a->flags == b->flags;
}

static void check_entry(const uint8_t *data, size_t size)
{
	struct silt_extent e, again;
	int used = extent_decode(data, size, &e);
	if (used < 0)
		return;
	CHECK(used > 0 && (size_t)used <= size);
	CHECK(e.len && e.off + e.len <= SILT_FILE_MAX);
	uint8_t buf[SILT_EXTENT_ENCODED_MAX];
	size_t n = extent_encode(&e, buf);
	CHECK(n <= sizeof(buf));
	CHECK(extent_decode(buf, n, &again) == (int)n && same(&e, &again));
}

static void check_map(const struct extent_map *m)
{
	for (size_t i = 0; i < m->n; i++) {
		const struct silt_extent *e = &m->v[i];
		CHECK(e->len && e->pack && !(e->flags & EXTENT_HOLE));
		CHECK(!i || m->v[i - 1].off + m->v[i - 1].len <= e->off);
		CHECK(extent_map_find(m, e->off) == e);
		CHECK(extent_map_find(m, e->off + e->len - 1) == e);
	}
}

static void check_encoded(const struct extent_map *m)
{
	uint8_t *log;
	size_t len;
	CHECK(extent_map_encode(m, &log, &len) == 0);
	struct extent_map again;
	extent_map_init(&again);
	CHECK(extent_map_add_log(&again, log, len) == 0 && again.n == m->n);
	for (size_t i = 0; i < m->n; i++)
		CHECK(same(&m->v[i], &again.v[i]));
	extent_map_free(&again);
	free(log);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t cut = 0;
	if (size < 4)
		return 0;
	memcpy(&cut, data, 4);
	data += 4;
	size -= 4;
	check_entry(data, size);
	struct extent_map m;
	extent_map_init(&m);
	extent_map_add_log(&m, data, size);
	check_map(&m);
	check_encoded(&m);
	extent_map_truncate(&m, cut);
	check_map(&m);
	CHECK(!m.n || m.v[m.n - 1].off + m.v[m.n - 1].len <= cut);
	extent_map_free(&m);
	return 0;
}
