#include "meta/metrics.h"

const struct silt_metric_info silt_metric_table[SILT_METRIC_COUNT] = {
#define X(id, name, kind, unit, help) [id] = { name, #kind, #unit, help },
	SILT_METRICS(X)
#undef X
};
