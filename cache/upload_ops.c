/* The uploader's real surroundings: object store and metadata engine. */
#include "cache/upload.h"

const struct uploader_ops uploader_ops = {
	.put = store_put,
	.alloc_packs = meta_alloc_packs,
	.commit = meta_commit,
};
