/* Random operations by one or two clients against a model in memory: every answer, and at the end the whole
 * tree, link counts, usage, the bytes of every file, and the live bytes of every pack.
 *
 * The seed is printed when something fails; SILT_TEST_SEED=N runs that one, SILT_TEST_SEEDS=N so many. */
#include "test/meta_fixture.h"

#define INODES 4000
#define NAMES  3000
#define BLOCK  ((uint64_t)8 << 20)
#define BLOCKS 24 /* three windows */
#define PACKS  4000

struct node {
	silt_ino ino;
	bool dir, dead;
	unsigned nlink, parent;
	uint64_t size;
	unsigned blocks[BLOCKS]; /* pack, 0: none */
	bool kept;		 /* deleted, still held open */
	unsigned by;		 /* by this client */
};

struct name {
	unsigned dir, node; /* indexes */
	char text[256];
};

struct model {
	struct node v[INODES];
	struct name names[NAMES];
	unsigned n, n_names, packs, dirs[16], n_dirs, step;
	uint64_t seed, x;
	unsigned clients, shards, grow; /* grow: creates rather than removes */
	struct meta *m[2];
};

static unsigned rnd(struct model *d, unsigned n)
{
	d->x ^= d->x << 13;
	d->x ^= d->x >> 7;
	d->x ^= d->x << 17;
	return (unsigned)((d->x >> 20) % n);
}

#define CHECK(cond, ...)                                                                           \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			print_error("seed %llu, step %u, %u shards, %u clients: ",                 \
				    (unsigned long long)d->seed, d->step, d->shards, d->clients);  \
			print_error(__VA_ARGS__);                                                  \
			fail_msg("%s", #cond);                                                     \
		}                                                                                  \
	} while (0)

static int find(struct model *d, unsigned dir, const char *text)
{
	for (unsigned i = 0; i < d->n_names; i++)
		if (d->names[i].dir == dir && !strcmp(d->names[i].text, text))
			return (int)i;
	return -1;
}

static void add_name(struct model *d, unsigned dir, const char *text, unsigned node)
{
	CHECK(d->n_names < NAMES, "too many names\n");
	struct name *n = &d->names[d->n_names++];
	n->dir = dir;
	n->node = node;
	snprintf(n->text, sizeof(n->text), "%s", text);
}

static unsigned entries(struct model *d, unsigned dir)
{
	unsigned n = 0;
	for (unsigned i = 0; i < d->n_names; i++)
		n += d->names[i].dir == dir;
	return n;
}

static bool is_below(struct model *d, unsigned dir, unsigned top)
{
	while (dir != top && dir)
		dir = d->v[dir].parent;
	return dir == top;
}

/* The first directory has hundreds of names, so that its buckets split and merge; others a few, some
 * of them unpleasant. */
static const char *some_name(struct model *d, unsigned dir, char *out)
{
	static const char *const odd[] = { "\xff\x01\n", "%s%n", "-", "...", " ", "\\x00", "{0}v", "*" };
	unsigned k = rnd(d, dir ? 12 : 330);
	if (k == 3) {
		memset(out, 'L', 255);
		out[255] = '\0';
	} else if (k > 3 && k < 12) {
		strcpy(out, odd[k - 4]);
	} else {
		snprintf(out, 256, "n%u", k);
	}
	return out;
}

static void drop_node(struct model *d, unsigned k, bool keep, unsigned by)
{
	struct node *v = &d->v[k];
	if (v->dir) {
		v->dead = true;
		d->v[v->parent].nlink--;
		for (unsigned i = 0; i < d->n_dirs; i++)
			if (d->dirs[i] == k)
				d->dirs[i--] = d->dirs[--d->n_dirs];
		return;
	}
	if (--v->nlink)
		return;
	v->kept = keep;
	v->by = by;
	v->dead = !keep;
}

static void do_make(struct model *d, unsigned c, unsigned dir, const char *text, bool is_dir)
{
	silt_ino ino = 0;
	int rc = make(d->m[c], d->v[dir].ino, text, (is_dir ? S_IFDIR : S_IFREG) | 0700, &ino);
	int at = find(d, dir, text);
	CHECK(rc == (at >= 0 ? -EEXIST : 0), "make %s: %d\n", text, rc);
	if (rc)
		return;
	CHECK(d->n < INODES, "too many\n");
	unsigned k = d->n++;
	d->v[k] = (struct node){ .ino = ino, .dir = is_dir, .nlink = is_dir ? 2 : 1, .parent = dir };
	add_name(d, dir, text, k);
	if (is_dir) {
		d->v[dir].nlink++;
		d->dirs[d->n_dirs++] = k;
	}
}

static void do_remove(struct model *d, unsigned c, unsigned dir, const char *text, bool as_dir)
{
	int at = find(d, dir, text);
	struct node *v = at >= 0 ? &d->v[d->names[at].node] : NULL;
	bool keep = rnd(d, 4) == 0;
	int expect = !v ? -ENOENT : as_dir && !v->dir ? -ENOTDIR : !as_dir && v->dir ? -EISDIR
			: v->dir && entries(d, d->names[at].node) ? -ENOTEMPTY : 0;
	struct meta_reply r = { 0 };
	int rc = as_dir ? rmdir_(d->m[c], d->v[dir].ino, text)
			: unlink_(d->m[c], d->v[dir].ino, text, keep, &r);
	CHECK(rc == expect, "remove %s: %d, not %d\n", text, rc, expect);
	if (rc)
		return;
	unsigned k = d->names[at].node;
	drop_node(d, k, keep, c);
	if (!as_dir) {
		CHECK(r.inode.attr.ino == v->ino, "unlink says another inode\n");
		CHECK(r.inode.attr.nlink == v->nlink, "unlink says %u links\n", r.inode.attr.nlink);
	}
	d->names[at] = d->names[--d->n_names];
}

static void do_link(struct model *d, unsigned c, unsigned dir, const char *text)
{
	if (!d->n_names)
		return;
	unsigned k = d->names[rnd(d, d->n_names)].node;
	int rc = link_(d->m[c], d->v[k].ino, d->v[dir].ino, text);
	int expect = d->v[k].dir ? -EPERM : find(d, dir, text) >= 0 ? -EEXIST : 0;
	CHECK(rc == expect, "link %s: %d, not %d\n", text, rc, expect);
	if (rc)
		return;
	d->v[k].nlink++;
	add_name(d, dir, text, k);
}

static bool one_of(int rc, const int *v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (v[i] == rc)
			return true;
	return false;
}

static void do_rename(struct model *d, unsigned c, unsigned from, const char *a, unsigned to, const char *b)
{
	unsigned flags = rnd(d, 6), n = 0;
	int ok[8];
	flags = flags < 3 ? flags : 0;
	int src = find(d, from, a), dst = find(d, to, b);
	struct node *s = src >= 0 ? &d->v[d->names[src].node] : NULL;
	struct node *t = dst >= 0 ? &d->v[d->names[dst].node] : NULL;
	bool same = s && s == t;
	if (!s)
		ok[n++] = -ENOENT;
	if (flags == META_RENAME_EXCHANGE && !t)
		ok[n++] = -ENOENT;
	if (flags == META_RENAME_NOREPLACE && t)
		ok[n++] = -EEXIST;
	if (s && s->dir && from != to && is_below(d, to, d->names[src].node))
		ok[n++] = -EINVAL;
	if (flags == META_RENAME_EXCHANGE && t && t->dir && from != to && is_below(d, from, d->names[dst].node))
		ok[n++] = -EINVAL;
	if (s && t && !same && flags != META_RENAME_EXCHANGE) {
		if (s->dir && !t->dir)
			ok[n++] = -ENOTDIR;
		if (!s->dir && t->dir)
			ok[n++] = -EISDIR;
		if (s->dir && t->dir && entries(d, d->names[dst].node))
			ok[n++] = -ENOTEMPTY;
	}
	struct meta_reply r = { 0 };
	int rc = rename_(d->m[c], d->v[from].ino, a, d->v[to].ino, b, flags, &r);
	CHECK(n ? one_of(rc, ok, n) : rc == 0,
	      "rename %s %s flags %u: %d, not %d\n", a, b, flags, rc, n ? ok[0] : 0);
	if (rc || same)
		return;
	unsigned sk = d->names[src].node;
	if (s->dir) {
		d->v[from].nlink--;
		d->v[to].nlink++;
		s->parent = to;
	}
	if (flags == META_RENAME_EXCHANGE) {
		if (t->dir) {
			d->v[to].nlink--;
			d->v[from].nlink++;
			t->parent = from;
		}
		d->names[src].node = d->names[dst].node;
		d->names[dst].node = sk;
		return;
	}
	CHECK(r.inode.attr.ino == s->ino, "rename says another inode\n");
	if (!t) {
		d->names[src].dir = to;
		snprintf(d->names[src].text, sizeof(d->names[src].text), "%s", b);
		return;
	}
	if (!t->dir)
		CHECK(r.replaced == t->ino && r.replaced_nlink == t->nlink - 1, "rename: what it replaced\n");
	drop_node(d, d->names[dst].node, false, c);
	d->names[dst].node = sk;
	d->names[src] = d->names[--d->n_names];
}

static struct node *some_file(struct model *d)
{
	for (unsigned tries = 0; tries < 20 && d->n_names; tries++) {
		struct node *v = &d->v[d->names[rnd(d, d->n_names)].node];
		if (!v->dir)
			return v;
	}
	return NULL;
}

static void do_resize(struct model *d, unsigned c)
{
	struct node *v = some_file(d);
	uint64_t size = rnd(d, 3) ? rnd(d, BLOCKS + 1) * BLOCK + (rnd(d, 2) ? 5 : 0) : 0;
	if (!v)
		return;
	int rc = resize_(d->m[c], v->ino, size);
	CHECK(rc == 0, "resize: %d\n", rc);
	for (unsigned b = 0; b < BLOCKS; b++)
		if (b * BLOCK >= size)
			v->blocks[b] = 0;
	v->size = size;
}

/* A few extents in one call: often several of one file, over and beside each other. */
static void do_commit(struct model *d, unsigned c)
{
	struct meta_commit v[6];
	unsigned n = 1 + rnd(d, 6);
	struct node *file[6], *f = some_file(d);
	for (unsigned i = 0; i < n; i++) {
		f = f && rnd(d, 2) ? f : some_file(d);
		if (!f || d->packs + 1 >= PACKS)
			return;
		unsigned at = rnd(d, 2) ? rnd(d, BLOCKS) : 0, len = 1 + rnd(d, 8 - at % 8);
		bool hole = rnd(d, 8) == 0;
		/* two files share a pack now and then */
		unsigned pack = hole ? 0 : (d->packs += rnd(d, 3) != 0, d->packs ? d->packs : ++d->packs);
		v[i] = (struct meta_commit){ .ino = f->ino, .mtime = now(),
			.extent = { .off = at * BLOCK, .len = len * BLOCK, .pack = pack,
				    .flags = hole ? EXTENT_HOLE : 0,
				    .pack_off = hole ? 0 : 48 + (d->step * 8 + i) % 1000000,
				    .stored = hole ? 0 : 50 + rnd(d, 1000) } };
		file[i] = f;
	}
	int rc = commit_(d->m[c], v, n);
	for (unsigned i = 0; i < n; i++) {
		CHECK(!rc && !v[i].err, "commit: %d %d\n", rc, v[i].err);
		const struct silt_extent *e = &v[i].extent;
		for (uint64_t b = e->off / BLOCK; b < (e->off + e->len) / BLOCK; b++)
			file[i]->blocks[b] = e->pack;
		if (e->pack && e->off + e->len > file[i]->size)
			file[i]->size = e->off + e->len;
	}
}

static void release_some(struct model *d)
{
	for (unsigned k = 0; k < d->n; k++)
		if (d->v[k].kept && rnd(d, 3)) {
			int rc = DO(meta_release_deleted(d->m[d->v[k].by], d->v[k].ino, meta_wait_done, &w_), NULL);
			CHECK(rc == 0, "release: %d\n", rc);
			d->v[k].kept = false;
			d->v[k].dead = true;
		}
}

static void step(struct model *d)
{
	char a[256], b[256];
	unsigned c = rnd(d, d->clients), dir = d->dirs[rnd(d, d->n_dirs)], to = d->dirs[rnd(d, d->n_dirs)];
	dir = rnd(d, 2) ? dir : 0;
	some_name(d, dir, a);
	some_name(d, to, b);
	unsigned what = rnd(d, 100);
	if (what < 10) { /* what is said to be absent must be, by either client */
		struct silt_inode i;
		int at = find(d, dir, a), rc = look(d->m[c], d->v[dir].ino, a, &i);
		CHECK(rc == (at < 0 ? -ENOENT : 0), "lookup %s: %d\n", a, rc);
		CHECK(rc || i.attr.ino == d->v[d->names[at].node].ino, "lookup %s: another\n", a);
	} else if (what < (d->grow ? 50u : 15u))
		do_make(d, c, dir, a, d->n_dirs < 12 && rnd(d, 8) == 0);
	else if (what < 55)
		do_remove(d, c, dir, a, rnd(d, 6) == 0);
	else if (what < 62)
		do_link(d, c, to, b);
	else if (what < 80)
		do_rename(d, c, dir, a, to, b);
	else if (what < 85)
		do_resize(d, c);
	else if (what < 98)
		do_commit(d, c);
	else
		release_some(d);
}

/* --- the end: everything is compared --- */

struct packs {
	long stored[PACKS];
};

static void sum_extent(struct packs *p, const struct silt_extent *e)
{
	if (e->pack && !(e->flags & EXTENT_HOLE))
		p->stored[e->pack] += e->stored;
}

static void check_bytes(struct model *d, struct node *v, struct packs *p)
{
	struct silt_inode i;
	struct extent_map map;
	int rc = getattr_(d->m[0], v->ino, &i);
	CHECK(rc == 0, "getattr: %d\n", rc);
	CHECK(i.attr.nlink == v->nlink, "%u links, not %u\n", i.attr.nlink, v->nlink);
	CHECK(i.attr.size == v->size, "size\n");
	extent_map_init(&map);
	if (i.map == SILT_MAP_INLINE) {
		sum_extent(p, &i.extent);
		extent_map_add(&map, &i.extent);
	}
	for (uint64_t w = 0; i.map == SILT_MAP_EXTERNAL && w < 3; w++) {
		struct meta_wait wait;
		meta_wait_init(&wait);
		meta_window(d->m[0], v->ino, w, meta_wait_done, &wait);
		CHECK(meta_wait(&wait) == 0, "window\n");
		for (size_t at = 0; at < wait.reply.len;) {
			struct silt_extent e;
			int used = extent_decode(wait.data + at, wait.reply.len - at, &e);
			CHECK(used > 0, "damaged log\n");
			sum_extent(p, &e);
			extent_map_add(&map, &e);
			at += (size_t)used;
		}
		meta_wait_free(&wait);
	}
	for (unsigned b = 0; b < BLOCKS; b++) {
		const struct silt_extent *e = extent_map_find(&map, b * BLOCK);
		unsigned pack = e && e->off <= b * BLOCK ? (unsigned)e->pack : 0;
		if (b * BLOCK < v->size)
			CHECK(pack == v->blocks[b], "block %u: pack %u, not %u\n", b, pack, v->blocks[b]);
	}
	extent_map_free(&map);
}

static void check_dir(struct model *d, unsigned k)
{
	struct silt_attr a = attr_of(d->m[0], d->v[k].ino);
	CHECK(a.nlink == d->v[k].nlink, "directory has %u links, not %u\n", a.nlink, d->v[k].nlink);
	CHECK(a.size == entries(d, k), "directory has %llu entries\n", (unsigned long long)a.size);
	CHECK(a.parent == d->v[d->v[k].parent].ino, "parent\n");
	uint64_t pos = 0, n = 0;
	do {
		struct meta_wait w;
		meta_wait_init(&w);
		meta_readdir(d->m[0], d->v[k].ino, pos, 50, true, meta_wait_done, &w);
		CHECK(meta_wait(&w) == 0, "readdir\n");
		for (size_t i = 0; i < w.page->n; i++, n++) {
			char text[256];
			const struct meta_dirent *e = &w.page->v[i];
			snprintf(text, sizeof(text), "%.*s", (int)e->len, e->name);
			int at = find(d, k, text);
			CHECK(at >= 0 && d->v[d->names[at].node].ino == e->ino, "entry %s\n", text);
		}
		pos = w.page->next;
		meta_wait_free(&w);
	} while (pos);
	CHECK(n == a.size, "listed %llu\n", (unsigned long long)n);
}

static long number(struct meta *m, const char *a, const char *b, const char *c)
{
	char *text = redis(m, a, b, c, NULL);
	const char *p = strpbrk(text, "0123456789");
	long v = strncmp(text, "(nil", 4) && p ? strtol(p, NULL, 10) : 0;
	free(text);
	return v;
}

/* Waits until the garbage lists are empty. */
static void collect(struct server *s, struct model *d)
{
	struct meta *m = server_open(s, NULL, 30000, 10);
	char key[32];
	for (unsigned k = 0; k < d->shards; k++) {
		snprintf(key, sizeof(key), "{%u}g", k);
		for (int t = 0; number(m, "LLEN", key, NULL) > 0; t++) {
			CHECK(t < 1000, "garbage stays\n");
			usleep(10000);
		}
	}
	meta_close(m);
}

static void check_all(struct server *s, struct model *d)
{
	static struct packs p;
	struct meta_reply r;
	uint64_t inodes = 0, bytes = 0;
	memset(&p, 0, sizeof(p));
	for (unsigned k = 0; k < d->n; k++) {
		struct node *v = &d->v[k];
		if (v->dead) {
			CHECK(getattr_(d->m[0], v->ino, NULL) == -ENOENT, "inode %u is still there\n", k);
			continue;
		}
		inodes++;
		bytes += v->size;
		if (v->dir)
			check_dir(d, k);
		else
			check_bytes(d, v, &p);
	}
	assert_int_equal(DO(meta_statfs(d->m[0], meta_wait_done, &w_), &r), 0);
	CHECK(r.statfs.inodes == inodes, "inodes %llu, not %llu\n", (unsigned long long)r.statfs.inodes,
	      (unsigned long long)inodes);
	CHECK(r.statfs.bytes == bytes, "bytes\n");
	collect(s, d);
	for (unsigned k = 1; k <= d->packs; k++) {
		long live = 0;
		char key[32], field[8];
		snprintf(field, sizeof(field), "%u", k % 64);
		for (unsigned sh = 0; sh < d->shards; sh++) {
			snprintf(key, sizeof(key), "{%u}l%x", sh, k / 64);
			live += number(d->m[0], "HGET", key, field);
		}
		CHECK(live == p.stored[k], "pack %u: %ld live bytes, not %ld\n", k, live, p.stored[k]);
	}
	assert_no_keys(d->m[0], "{*}t");
	assert_no_keys(d->m[0], "{*}a*");
}

static void run(struct server *s, uint64_t seed, unsigned steps, unsigned clients)
{
	struct model *d = calloc(1, sizeof(*d));
	d->seed = seed;
	d->x = seed * 0x9e3779b97f4a7c15u + 1;
	d->clients = clients;
	d->m[0] = server_open(s, NULL, 30000, 0);
	d->m[1] = server_open(s, NULL, 30000, 0);
	d->shards = meta_volume(d->m[0])->shards;
	d->v[d->n++] = (struct node){ .ino = 1, .dir = true, .nlink = 2 };
	d->dirs[d->n_dirs++] = 0;
	for (d->step = 0; d->step < steps; d->step++) {
		d->grow = d->step / 600 % 2 == 0;
		step(d);
	}
	check_all(s, d);
	meta_close(d->m[0]);
	meta_close(d->m[1]);
	free(d);
}

static void seeds(unsigned shards, unsigned clients, unsigned steps)
{
	const char *one = getenv("SILT_TEST_SEED"), *many = getenv("SILT_TEST_SEEDS");
	uint64_t first = one ? strtoull(one, NULL, 10) : 1;
	uint64_t n = one ? 1 : many ? strtoull(many, NULL, 10) : 1;
	for (uint64_t k = first; k < first + n; k++) {
		struct server *s = server_start(shards);
		run(s, k, steps, clients);
		server_stop(s);
	}
}

static void test_one_shard(void **state)
{
	(void)state;
	seeds(1, 1, 3000);
}

static void test_eight_shards(void **state)
{
	(void)state;
	seeds(8, 1, 2000);
}

/* Leases make the clients wait for each other: fewer steps. */
static void test_two_clients(void **state)
{
	(void)state;
	seeds(1, 2, 1200);
	seeds(8, 2, 1200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_shard),
		cmocka_unit_test(test_eight_shards),
		cmocka_unit_test(test_two_clients),
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
