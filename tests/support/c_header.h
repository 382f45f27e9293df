/* What tests/c/header_test.c compiles as C, called from the tests in C++. */
#ifndef KVCACHE_TESTS_SUPPORT_C_HEADER_H_
#define KVCACHE_TESTS_SUPPORT_C_HEADER_H_

#include <stddef.h>

#include "kvcache_c.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes at most `room` sizes and offsets of the structs; returns how many there are. */
size_t header_test_sizes(size_t* sizes, size_t room);

/* Makes and frees a plan, then passes null: the status of the latter. */
kvc_status header_test_call_from_c(void);

#ifdef __cplusplus
}
#endif

#endif /* KVCACHE_TESTS_SUPPORT_C_HEADER_H_ */
