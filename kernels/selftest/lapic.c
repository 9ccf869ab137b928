#include "selftest.h"
void lapic_init(void) {}
void test_lapic(void) {}
