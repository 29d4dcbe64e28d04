/* Operations on a file's bytes in the metadata engine: files without a name, holes, shared extents,
 * appends, access times; and that the packs' live counters are at any time what a recount of all maps
 * gives. Against a real Redis, with 1 and with 4 shards. */
#include "meta/engine.h"
#include "test/meta_fixture.h"

static unsigned shards;

static int teardown(void **state)
{
	server_stop(*state);
	return 0;
}

static int setup1(void **state)
{
	*state = server_start(shards = 1);
	return 0;
}

static int setup4(void **state)
{
	*state = server_start(shards = 4);
	return 0;
}

static const char recount[] = "local byte, sub, floor = string.byte, string.sub, math.floor\n"
"local function getv(s, p)\n"
"  local v, m = 0, 1\n"
"  while true do\n"
"    local b = byte(s, p)\n"
"    p = p + 1\n"
"    if b < 128 then return v + b * m, p end\n"
"    v, m = v + (b - 128) * m, m * 128\n"
"  end\n"
"end\n"
"local T = KEYS[1]\n"
"local sums, out = {}, {}\n"
"local function add(log)\n"
"  local p, _ = 1, nil\n"
"  while p <= #log do\n"
"    local flags, pack, stored\n"
"    flags, p = getv(log, p)\n"
"    _, p = getv(log, p)\n"
"    _, p = getv(log, p)\n"
"    if flags % 2 == 0 then\n"
"      pack, p = getv(log, p)\n"
"      _, p = getv(log, p)\n"
"      stored, p = getv(log, p)\n"
"      sums[pack] = (sums[pack] or 0) + stored\n"
"    end\n"
"    if floor(flags / 2) % 2 == 1 then _, p = getv(log, p) end\n"
"  end\n"
"end\n"
"for _, k in ipairs(redis.call('KEYS', T .. 'i*')) do\n"
"  for i, s in ipairs(redis.call('HVALS', k)) do\n"
"    local b, m0, m1 = byte(s, 1, 3)\n"
"    if floor((m0 + m1 * 256) / 4096) == 8 then\n"
"      local p, _ = 13, nil\n"
"      if b % 16 >= 8 then p = p + 1 end\n"
"      if b % 2 == 1 then p = p + 9 end\n"
"      if floor(b / 2) % 4 == 2 then p = p + 9 end\n"
"      if floor(b / 2) % 4 == 1 then _, p = getv(s, p) end\n"
"      for j = 1, 5 do _, p = getv(s, p) end\n"
"      if byte(s, p) == 1 then add(sub(s, p + 1)) end\n"
"    end\n"
"  end\n"
"end\n"
"for _, k in ipairs(redis.call('KEYS', T .. 'x*')) do\n"
"  for i, s in ipairs(redis.call('HVALS', k)) do add(s) end\n"
"end\n"
"for _, s in ipairs(redis.call('LRANGE', T .. 'g', 0, -1)) do\n"
"  if sub(s, 1, 1) == 'B' then add(sub(s, 2)) end\n"
"end\n"
"for _, k in ipairs(redis.call('KEYS', T .. 'l*')) do\n"
"  local base = tonumber(sub(k, #T + 2), 16) * 64\n"
"  local all = redis.call('HGETALL', k)\n"
"  for i = 1, #all, 2 do\n"
"    local pack = base + tonumber(all[i])\n"
"    if sums[pack] ~= tonumber(all[i + 1]) then\n"
"      out[#out + 1] = 'pack ' .. pack .. ' counter ' .. all[i + 1] .. ' recount ' .. (sums[pack] or 0)\n"
"    end\n"
"    sums[pack] = nil\n"
"  end\n"
"end\n"
"for pack, n in pairs(sums) do out[#out + 1] = 'pack ' .. pack .. ' no counter, recount ' .. n end\n"
"return table.concat(out, '; ')\n";

/* Every counter of every shard is what the maps say. */
static void assert_live_counters(struct meta *m)
{
	for (unsigned s = 0; s < shards; s++) {
		char key[16], *text;
		snprintf(key, sizeof(key), "{%u}", s);
		const char *argv[] = { "EVAL", recount, "1", key };
		assert_int_equal(meta_debug_command(m, 4, argv, NULL, &text), 0);
		if (strcmp(text, "\"\"\n") != 0 && strcmp(text, "\n") != 0)
			fail_msg("shard %u: %s", s, text);
		free(text);
	}
}

/* All logs are on the list of those to be folded. */
static void note_all_logs(struct meta *m)
{
	static const char text[] = "for _, k in ipairs(redis.call('KEYS', KEYS[1] .. 'x*')) do\n"
				   "  for _, w in ipairs(redis.call('HKEYS', k)) do\n"
				   "    redis.call('SADD', KEYS[1] .. 'q', string.sub(k, #KEYS[1] + 2) .. ':' .. w)\n"
				   "  end\n"
				   "end\n"
				   "return ''\n";
	for (unsigned s = 0; s < shards; s++) {
		char key[16], *out;
		snprintf(key, sizeof(key), "{%u}", s);
		const char *argv[] = { "EVAL", text, "1", key };
		assert_int_equal(meta_debug_command(m, 4, argv, NULL, &out), 0);
		assert_null(strstr(out, "ERR"));
		free(out);
	}
}

static struct meta_commit item(silt_ino ino, uint64_t off, uint64_t len, uint64_t pack, uint32_t pack_off)
{
	return (struct meta_commit){ .ino = ino, .mtime = now(),
				     .extent = { .off = off, .len = len, .pack = pack, .pack_off = pack_off,
						 .stored = (uint32_t)(len / 2 + 41) } };
}

static void must_commit(struct meta *m, silt_ino ino, uint64_t off, uint64_t len, uint64_t pack,
			uint32_t pack_off)
{
	struct meta_commit c = item(ino, off, len, pack, pack_off);
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, 0);
}

static int hole(struct meta *m, silt_ino ino, uint64_t off, uint64_t stop, uint64_t size,
		struct meta_reply *r)
{
	struct meta_allocate how = { .off = off, .stop = stop, .size = size, .now = now() };
	return DO(meta_allocate(m, ino, &how, meta_wait_done, &w_), r);
}

/* The file's map, from its record or its windows. */
static void map_of(struct meta *m, silt_ino ino, struct extent_map *map)
{
	struct silt_inode i;
	extent_map_init(map);
	assert_int_equal(getattr_(m, ino, &i), 0);
	if (i.map == SILT_MAP_INLINE)
		assert_int_equal(extent_map_add(map, &i.extent), 0);
	if (i.map != SILT_MAP_EXTERNAL)
		return;
	for (uint64_t w = 0, last = i.attr.size / SILT_WINDOW; w <= last; w++) {
		struct meta_reply r;
		assert_int_equal(DO(meta_next_window(m, ino, w, last, meta_wait_done, &w_), &r), 0);
		if (r.first == UINT64_MAX)
			break;
		w = r.first;
		struct meta_wait wait;
		meta_wait_init(&wait);
		meta_window(m, ino, w, meta_wait_done, &wait);
		assert_int_equal(meta_wait(&wait), 0);
		if (wait.reply.len)
			assert_int_equal(extent_map_add_log(map, wait.data, wait.reply.len), 0);
		meta_wait_free(&wait);
	}
}

static void assert_extent(const struct extent_map *map, size_t i, uint64_t off, uint64_t len, uint64_t pack,
			  uint32_t skip)
{
	assert_true(i < map->n);
	assert_int_equal(map->v[i].off, off);
	assert_int_equal(map->v[i].len, len);
	assert_int_equal(map->v[i].pack, pack);
	assert_int_equal(map->v[i].skip, skip);
}

static void assert_same_map(const struct extent_map *a, const struct extent_map *b)
{
	assert_int_equal(a->n, b->n);
	for (size_t i = 0; i < a->n; i++) {
		assert_extent(b, i, a->v[i].off, a->v[i].len, a->v[i].pack, a->v[i].skip);
		assert_int_equal(a->v[i].pack_off, b->v[i].pack_off);
		assert_int_equal(a->v[i].stored, b->v[i].stored);
		assert_int_equal(a->v[i].flags, b->v[i].flags);
	}
}

/* --- files without a name --- */

static int unnamed(struct meta *m, silt_ino dir, bool linkable, silt_ino *ino)
{
	struct meta_make how = { .mode = S_IFREG | 0600, .uid = 5, .gid = 6, .now = now() };
	struct meta_reply r;
	int rc = DO(meta_make_unnamed(m, dir, &how, linkable, meta_wait_done, &w_), &r);
	if (!rc)
		assert_int_equal(r.inode.attr.nlink, 0);
	*ino = r.inode.attr.ino;
	return rc;
}

static int release(struct meta *m, silt_ino ino)
{
	return DO(meta_release_deleted(m, ino, meta_wait_done, &w_), NULL);
}

static void test_unnamed(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0), *other = server_open(s, NULL, 0, 0);
	silt_ino ino, dir[8];
	struct silt_inode i;
	for (int k = 0; k < 8; k++) { /* some of them in other shards */
		char name[8];
		snprintf(name, sizeof(name), "d%d", k);
		dir[k] = must_make(m, SILT_ROOT_INO, name, S_IFDIR | 0755);
	}
	struct meta_reply before, after;
	assert_int_equal(DO(meta_statfs(m, meta_wait_done, &w_), &before), 0);

	/* Released without a name: nothing is left. */
	assert_int_equal(unnamed(m, SILT_ROOT_INO, true, &ino), 0);
	must_commit(m, ino, 0, 4096, 7, 48);
	assert_int_equal(release(m, ino), 0);
	assert_int_equal(getattr_(m, ino, &i), -ENOENT);
	assert_live_counters(m);

	/* Gets its first name, also elsewhere, from the session that holds it only; then another. */
	for (int k = 0; k < 8; k++) {
		assert_int_equal(unnamed(m, SILT_ROOT_INO, true, &ino), 0);
		must_commit(m, ino, 0, 4096, 8, 48);
		assert_int_equal(link_(other, ino, dir[k], "stolen"), -ENOENT);
		must_make(m, dir[k], "there", S_IFREG | 0600);
		assert_int_equal(link_(m, ino, dir[k], "there"), -EEXIST);
		assert_int_equal(attr_of(m, ino).nlink, 0);
		assert_int_equal(link_(m, ino, dir[k], "named"), 0);
		assert_int_equal(attr_of(m, ino).nlink, 1);
		assert_int_equal(link_(other, ino, dir[(k + 1) % 8], "second"), 0);
		assert_int_equal(release(m, ino), 0); /* has a name: stays */
		assert_int_equal(attr_of(m, ino).nlink, 2);
		assert_int_equal(unlink_(m, dir[k], "named", true, NULL), 0);
		assert_int_equal(unlink_(m, dir[(k + 1) % 8], "second", true, NULL), 0);
		assert_int_equal(attr_of(m, ino).nlink, 0);
		assert_int_equal(link_(m, ino, dir[k], "again"), -ENOENT); /* had its names */
		assert_int_equal(release(m, ino), 0);
		assert_int_equal(unlink_(m, dir[k], "there", false, NULL), 0);
	}
	/* O_EXCL: never. */
	assert_int_equal(unnamed(m, SILT_ROOT_INO, false, &ino), 0);
	assert_int_equal(link_(m, ino, SILT_ROOT_INO, "x"), -ENOENT);
	/* Its session ends. */
	silt_ino held;
	assert_int_equal(unnamed(other, SILT_ROOT_INO, true, &held), 0);
	meta_close(other);
	assert_int_equal(getattr_(m, held, &i), -ENOENT);
	assert_int_equal(release(m, ino), 0);
	assert_int_equal(DO(meta_statfs(m, meta_wait_done, &w_), &after), 0);
	assert_int_equal(after.statfs.inodes, before.statfs.inodes);
	assert_int_equal(after.statfs.bytes, before.statfs.bytes);
	assert_no_keys(m, "{*}o");
	assert_live_counters(m);

	silt_ino file = must_make(m, SILT_ROOT_INO, "f", S_IFREG | 0600);
	assert_int_equal(unnamed(m, file, true, &ino), -ENOTDIR);
	meta_close(m);
}

/* --- holes --- */

static void test_holes(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0);
	silt_ino f = must_make(m, SILT_ROOT_INO, "f", S_IFREG | 0600);
	struct extent_map map;
	struct meta_reply r;
	must_commit(m, f, 0, 10000, 1, 48);
	uint64_t version = attr_of(m, f).version;

	assert_int_equal(hole(m, f, 0, 1000, 0, &r), 0); /* front */
	assert_int_equal(r.first, 0);
	assert_true(r.inode.attr.version > version);
	assert_int_equal(hole(m, f, 9000, 20000, 0, NULL), 0); /* back, past the end */
	map_of(m, f, &map);
	assert_int_equal(map.n, 1);
	assert_extent(&map, 0, 1000, 8000, 1, 1000);
	extent_map_free(&map);
	assert_int_equal(attr_of(m, f).size, 10000);
	assert_live_counters(m);

	assert_int_equal(hole(m, f, 4000, 5000, 0, NULL), 0); /* the middle: two extents */
	map_of(m, f, &map);
	assert_int_equal(map.n, 2);
	assert_extent(&map, 0, 1000, 3000, 1, 1000);
	assert_extent(&map, 1, 5000, 4000, 1, 5000);
	extent_map_free(&map);
	assert_live_counters(m);

	assert_int_equal(hole(m, f, 0, SILT_FILE_MAX, 0, NULL), 0); /* all */
	map_of(m, f, &map);
	assert_int_equal(map.n, 0);
	extent_map_free(&map);
	assert_int_equal(hole(m, f, 0, 0, 123456, &r), 0); /* none, but larger */
	assert_int_equal(r.inode.attr.size, 123456);
	assert_int_equal(hole(m, f, 0, 0, 99, &r), 0);
	assert_int_equal(r.inode.attr.size, 123456);
	assert_live_counters(m);

	/* An inline extent as a whole. */
	silt_ino g = must_make(m, SILT_ROOT_INO, "g", S_IFREG | 0600);
	must_commit(m, g, 0, 10000, 2, 48);
	assert_int_equal(hole(m, g, 0, 10000, 0, &r), 0);
	assert_int_equal(r.inode.map, SILT_MAP_NONE);
	assert_live_counters(m);

	/* Many windows: some a call. Data at the far end of a sparse file is found. */
	silt_ino h = must_make(m, SILT_ROOT_INO, "h", S_IFREG | 0600);
	for (uint64_t w = 0; w < 150; w++)
		must_commit(m, h, w * 7 * SILT_WINDOW + 5, 100, 10 + w / 40, (uint32_t)(48 + 200 * (w % 40)));
	uint64_t far = SILT_FILE_MAX - 4096;
	must_commit(m, h, far, 4096, 99, 48);
	assert_int_equal(DO(meta_next_window(m, h, 1, far / SILT_WINDOW, meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.first, 7);
	assert_int_equal(DO(meta_next_window(m, h, 149 * 7 + 1, far / SILT_WINDOW, meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.first, far / SILT_WINDOW);
	assert_int_equal(DO(meta_next_window(m, h, 8, 13, meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.first, UINT64_MAX);
	assert_int_equal(r.next, 0);
	unsigned calls = 0;
	for (uint64_t off = 6; off; calls++) {
		assert_int_equal(hole(m, h, off, far + 10, 0, &r), 0);
		assert_true(r.first == 0 || r.first > off);
		off = r.first;
	}
	assert_in_range(calls, 3, 4);
	map_of(m, h, &map);
	assert_int_equal(map.n, 2);
	assert_extent(&map, 0, 5, 1, 10, 0);
	assert_extent(&map, 1, far + 10, 4086, 99, 10);
	extent_map_free(&map);
	assert_live_counters(m);
	meta_close(m);
}

/* --- sharing --- */

static void test_clone(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0);
	silt_ino d = must_make(m, SILT_ROOT_INO, "dir", S_IFDIR | 0755);
	silt_ino a = must_make(m, SILT_ROOT_INO, "a", S_IFREG | 0600);
	silt_ino b = must_make(m, d, "b", S_IFREG | 0600);
	struct extent_map map;
	struct meta_reply r;
	must_commit(m, a, 0, 10000, 1, 48);

	struct silt_extent e[2] = {
		{ .off = 500, .len = 100, .pack = 1, .pack_off = 48, .stored = 5041, .skip = 300,
		  .flags = EXTENT_FOREIGN },
		{ .off = 700, .len = 50, .flags = EXTENT_HOLE },
	};
	assert_int_equal(DO(meta_clone(m, b, e, 2, 750, false, now(), meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.inode.attr.size, 750);
	assert_int_equal(r.inode.map, SILT_MAP_INLINE);
	assert_live_counters(m);
	for (int i = 0; i < 2; i++) /* the same again: nothing doubles */
		assert_int_equal(DO(meta_clone(m, b, e, 1, 750, false, now(), meta_wait_done, &w_), &r), 0);
	assert_live_counters(m);
	must_commit(m, b, 0, 700, 2, 48); /* covers it */
	assert_live_counters(m);
	assert_int_equal(DO(meta_clone(m, b, e, 1, 600, false, now(), meta_wait_done, &w_), &r), 0);
	e[1].off = 520;
	e[1].len = 10;
	assert_int_equal(DO(meta_clone(m, b, &e[1], 1, 530, false, now(), meta_wait_done, &w_), &r), 0);
	map_of(m, b, &map);
	assert_int_equal(map.n, 4);
	assert_extent(&map, 0, 0, 500, 2, 0);
	assert_extent(&map, 1, 500, 20, 1, 300);
	assert_extent(&map, 2, 530, 70, 1, 330);
	assert_extent(&map, 3, 600, 100, 2, 600);
	extent_map_free(&map);
	assert_live_counters(m);
	assert_int_equal(unlink_(m, SILT_ROOT_INO, "a", false, NULL), 0);
	assert_live_counters(m);
	assert_int_equal(unlink_(m, d, "b", false, NULL), 0);
	assert_live_counters(m);
	meta_close(m);
}

/* --- appends --- */

static void test_append(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0), *other = server_open(s, NULL, 0, 0);
	silt_ino f = must_make(m, SILT_ROOT_INO, "f", S_IFREG | 0600);
	struct extent_map map;
	struct meta_commit c[3];
	for (int i = 0; i < 3; i++) {
		c[i] = item(f, 0, 100, 1, (uint32_t)(48 + 200 * i));
		c[i].append = true;
	}
	assert_int_equal(commit_(m, c, 2), 0); /* the second believes in an end that was */
	assert_int_equal(c[0].err, 0);
	assert_int_equal(c[0].at, 0);
	assert_int_equal(c[1].at, 100);
	assert_int_equal(c[1].version, c[0].version + 1);
	assert_int_equal(commit_(other, &c[2], 1), 0);
	assert_int_equal(c[2].at, 200);
	map_of(m, f, &map);
	assert_int_equal(map.n, 3);
	assert_int_equal(map.v[0].flags & EXTENT_FOREIGN, 0);
	assert_int_equal(map.v[1].flags & EXTENT_FOREIGN, EXTENT_FOREIGN);
	extent_map_free(&map);

	/* Sent again though it had been done: found. */
	c[1].again = true;
	assert_int_equal(commit_(m, &c[1], 1), 0);
	assert_int_equal(c[1].err, 0);
	assert_int_equal(c[1].at, 100);
	assert_int_equal(attr_of(m, f).size, 300);

	/* Across a window's border: two extents of one run. */
	assert_int_equal(resize_(m, f, SILT_WINDOW - 30), 0);
	c[0] = item(f, SILT_WINDOW - 30, 1000, 2, 48);
	c[0].append = true;
	assert_int_equal(commit_(m, c, 1), 0);
	assert_int_equal(c[0].at, SILT_WINDOW - 30);
	map_of(m, f, &map);
	assert_extent(&map, map.n - 2, SILT_WINDOW - 30, 30, 2, 0);
	assert_extent(&map, map.n - 1, SILT_WINDOW, 970, 2, 30);
	extent_map_free(&map);
	assert_live_counters(m);
	c[0].again = true;
	assert_int_equal(commit_(m, c, 1), 0);
	assert_int_equal(c[0].at, SILT_WINDOW - 30);
	assert_int_equal(attr_of(m, f).size, SILT_WINDOW + 970);
	assert_int_equal(unlink_(m, SILT_ROOT_INO, "f", false, NULL), 0);
	c[0].again = false;
	assert_int_equal(commit_(m, c, 1), 0);
	assert_int_equal(c[0].err, -ENOENT);
	assert_live_counters(m);
	meta_close(other);
	meta_close(m);
}

/* --- access times --- */

static void test_touch(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0);
	silt_ino d = must_make(m, SILT_ROOT_INO, "dir", S_IFDIR | 0755);
	struct meta_touch t[3] = { { .ino = must_make(m, SILT_ROOT_INO, "a", S_IFREG | 0600) },
				   { .ino = must_make(m, d, "b", S_IFREG | 0600) },
				   { .ino = silt_ino_make(0, 999999) } };
	struct silt_attr before = attr_of(m, t[1].ino);
	for (int i = 0; i < 3; i++)
		t[i].atime = (struct silt_time){ before.mtime.sec + 100, 5 };
	assert_int_equal(DO(meta_touch(m, t, 3, true, meta_wait_done, &w_), NULL), 0);
	struct silt_attr a = attr_of(m, t[1].ino);
	assert_int_equal(a.atime.sec, before.mtime.sec + 100);
	assert_int_equal(a.atime.nsec, 5);
	assert_int_equal(a.ctime.sec, before.ctime.sec);
	assert_int_equal(a.version, before.version);
	for (int i = 0; i < 3; i++)
		t[i].atime.sec += 100;
	assert_int_equal(DO(meta_touch(m, t, 3, true, meta_wait_done, &w_), NULL), 0); /* too soon */
	assert_int_equal(attr_of(m, t[0].ino).atime.sec, before.mtime.sec + 100);
	assert_int_equal(DO(meta_touch(m, t, 3, false, meta_wait_done, &w_), NULL), 0);
	assert_int_equal(attr_of(m, t[0].ino).atime.sec, before.mtime.sec + 200);
	t[0].atime.sec -= 150; /* never back */
	assert_int_equal(DO(meta_touch(m, t, 1, false, meta_wait_done, &w_), NULL), 0);
	assert_int_equal(attr_of(m, t[0].ino).atime.sec, before.mtime.sec + 200);
	t[0].atime.sec += 90000;
	assert_int_equal(DO(meta_touch(m, t, 1, true, meta_wait_done, &w_), NULL), 0); /* a day later */
	assert_int_equal(attr_of(m, t[0].ino).atime.sec, t[0].atime.sec);
	meta_close(m);
}

/* --- the counters after anything --- */

static unsigned pick(unsigned *seed, unsigned n)
{
	*seed = *seed * 1103515245u + 12345u;
	return (*seed >> 8) % n;
}

static uint64_t some_off(unsigned *seed)
{
	uint64_t window = pick(seed, 4) * SILT_WINDOW;
	return window + pick(seed, 40) * 512;
}

/* Shares a random part of one file's map with another, as copy_file_range does it. */
static void clone_some(struct meta *m, silt_ino from, silt_ino to, unsigned *seed)
{
	struct extent_map map;
	struct silt_extent v[8];
	size_t n = 0;
	map_of(m, from, &map);
	uint64_t base = pick(seed, 4) * SILT_WINDOW, at = base;
	for (size_t i = 0; i < map.n && n < 8; i++) {
		v[n] = map.v[i];
		uint64_t cut = pick(seed, (unsigned)v[n].len);
		v[n].skip += (uint32_t)cut;
		v[n].len -= cut;
		v[n].off = at;
		v[n].flags |= EXTENT_FOREIGN;
		at += v[n++].len;
		if (pick(seed, 3) == 0 && n < 8) {
			v[n++] = (struct silt_extent){ .off = at, .len = 700, .flags = EXTENT_HOLE };
			at += 700;
		}
	}
	assert_int_equal(DO(meta_clone(m, to, v, n, at > base ? at : 0, false, now(), meta_wait_done, &w_),
			    NULL), 0);
	extent_map_free(&map);
}

static void random_operation(struct meta *m, silt_ino *f, unsigned nfiles, unsigned *seed, unsigned *pack)
{
	unsigned k = pick(seed, nfiles);
	char name[8];
	snprintf(name, sizeof(name), "r%u", k);
	uint64_t off = some_off(seed), len = 1 + pick(seed, 9000);
	struct meta_commit c = item(f[k], off, len, *pack, (uint32_t)(48 + 10000 * pick(seed, 50)));
	switch (pick(seed, 10)) {
	case 0:
	case 1:
		c.append = true;
		/* fall through */
	case 2:
	case 3:
		assert_int_equal(commit_(m, &c, 1), 0);
		assert_int_equal(c.err, 0);
		*pack += 1;
		break;
	case 4: assert_int_equal(resize_(m, f[k], off), 0); break;
	case 5:
		if (pick(seed, 3) == 0)
			assert_int_equal(resize_(m, f[k], 0), 0);
		break;
	case 6:
	case 7: assert_int_equal(hole(m, f[k], off, off + len * pick(seed, 9000), 0, NULL), 0); break;
	case 8: clone_some(m, f[pick(seed, nfiles)], f[k], seed); break;
	default:
		if (pick(seed, 4) == 0) {
			silt_ino dir = (silt_ino)k; /* the directory's number stands behind the files' */
			assert_int_equal(unlink_(m, f[nfiles + dir], name, false, NULL), 0);
			f[k] = must_make(m, f[nfiles + dir], name, S_IFREG | 0600);
		}
	}
}

static void test_random_live(void **state)
{
	struct server *s = *state;
	unsigned first = getenv("SILT_SEED") ? (unsigned)atoi(getenv("SILT_SEED")) : (unsigned)time(NULL);
	struct meta *m = server_open(s, NULL, 0, 0);
	enum { FILES = 6 };
	silt_ino f[2 * FILES];
	unsigned seed = first, pack = 1;
	print_message("# SILT_SEED=%u\n", first);
	for (unsigned k = 0; k < FILES; k++) {
		char name[8];
		snprintf(name, sizeof(name), "d%u", k);
		f[FILES + k] = must_make(m, SILT_ROOT_INO, name, S_IFDIR | 0755);
		snprintf(name, sizeof(name), "r%u", k);
		f[k] = must_make(m, f[FILES + k], name, S_IFREG | 0600);
	}
	for (int i = 0; i < 3000; i++) {
		random_operation(m, f, FILES, &seed, &pack);
		if (i % 20 == 0)
			assert_live_counters(m);
		if (i % 100 == 0) {
			struct extent_map before[FILES], after;
			for (unsigned k = 0; k < FILES; k++)
				map_of(m, f[k], &before[k]);
			note_all_logs(m);
			for (unsigned k = 0; k < shards; k++)
				while (fold_logs(m, k))
					;
			assert_live_counters(m);
			for (unsigned k = 0; k < FILES; k++) {
				map_of(m, f[k], &after);
				assert_same_map(&before[k], &after);
				extent_map_free(&before[k]);
				extent_map_free(&after);
			}
		}
	}
	assert_true(silt_metric_get(&s->metrics, M_LOGS_FOLDED) > 0);
	meta_close(m);

	/* With everything gone and the garbage worked off, no counter is left. */
	m = server_open(s, NULL, 0, 20);
	for (unsigned k = 0; k < FILES; k++) {
		char name[8];
		snprintf(name, sizeof(name), "r%u", k);
		assert_int_equal(unlink_(m, f[FILES + k], name, false, NULL), 0);
	}
	for (int i = 0; i < 500; i++) {
		char *text = redis(m, "KEYS", "{*}g", NULL, NULL);
		bool done = !strcmp(text, "(empty)\n");
		free(text);
		if (done)
			break;
		usleep(20000);
	}
	assert_no_keys(m, "{*}g");
	assert_no_keys(m, "{*}l*");
	assert_no_keys(m, "{*}x*");
	meta_close(m);
}

/* A window of more packs than one garbage call takes. */
static void test_garbage_of_many_packs(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 20);
	enum { N = 2500 };
	for (int half = 0; half < 2; half++) {
		silt_ino f = must_make(m, SILT_ROOT_INO, "f", S_IFREG | 0600);
		struct meta_commit *c = calloc(N, sizeof(*c));
		for (unsigned i = 0; i < N; i++)
			c[i] = item(f, i * 10, 10, i + 1, 48);
		assert_int_equal(commit_(m, c, N), 0);
		free(c);
		if (half)
			assert_int_equal(hole(m, f, 0, N * 10, 0, NULL), 0);
		else
			assert_int_equal(resize_(m, f, 0), 0);
		bool done = false;
		for (int i = 0; i < 500 && !done; i++) {
			assert_live_counters(m);
			char *text = redis(m, "KEYS", "{*}[gl]*", NULL, NULL);
			done = !strcmp(text, "(empty)\n");
			free(text);
			usleep(10000);
		}
		assert_true(done);
		assert_int_equal(unlink_(m, SILT_ROOT_INO, "f", false, NULL), 0);
	}
	meta_close(m);
}

#define BOTH(f)                                                                                    \
	cmocka_unit_test_setup_teardown(f, setup1, teardown),                                      \
		cmocka_unit_test_setup_teardown(f, setup4, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_unnamed), BOTH(test_holes), BOTH(test_clone),
		BOTH(test_append), BOTH(test_touch), BOTH(test_random_live),
		BOTH(test_garbage_of_many_packs),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
