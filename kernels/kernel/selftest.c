/* The self-tests' counter, their order, and the test of the library. */
#include "selftest.h"
#include "errno.h"
#include "init.h"
#include "pattern.h"
#include "printk.h"
#include "string.h"

static u32 checks, failed;

bool selftest_check(bool ok, const char *file, int line, const char *text)
{
	checks++;
	if (!ok) {
		failed++;
		pr_err("selftest: %s:%d: %s does not hold\n", file, line, text);
	}
	return ok;
}

/* Whether the compiler's and the linker's results are what the hosted tests of the same sources ran on. */
void lib_selftest(void)
{
	u8 a[40], b[40];
	char text[32];
	const char *end;
	u64 v;

	for (u32 i = 0; i < sizeof(a); i++)
		a[i] = (u8)i;
	memcpy(b, a, sizeof(b));
	CHECK(!memcmp(a, b, sizeof(a)));
	memmove(b + 3, b, 30);
	CHECK(b[2] == 2 && b[3] == 0 && b[32] == 29 && b[33] == 33);
	memmove(b, b + 3, 30);
	CHECK(b[0] == 0 && b[29] == 29);
	memset(b + 1, 0x5a, 21);
	CHECK(b[0] == 0 && b[1] == 0x5a && b[21] == 0x5a && b[22] == 22);
	CHECK(memcmp(a, b, sizeof(a)) < 0);

	CHECK(scnprintf(text, sizeof(text), "%5d|%-4x|%s", -42, 0xabU, "end") == 14);
	CHECK(!strcmp(text, "  -42|ab  |end"));
	CHECK(scnprintf(text, 4, "%lu", ~0UL) == 3 && !strcmp(text, "184"));
	CHECK(memparse("0x10M,", &end) == 16 * MIB && *end == ',');
	CHECK(kstrtou64("18446744073709551616", 0, &v) == -ERANGE);
	CHECK(kstrtou64("12k", 0, &v) == -EINVAL);

	CHECK(csum_partial("\1\0\0\0\2\0\0\0\377\377\377\377\0\0\0\0"
			   "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
			   "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 64, 0) == 3);
}

static void run(const char *name, void (*test)(void))
{
	checks = failed = 0;
	test();
	pr_info("selftest %s: %u checks, %u failed\n", name, checks, failed);
}

bool selftest_run(void)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} tests[] = {
		{ "lib", lib_selftest },
		{ "mm", mm_selftest },
		{ "traps", trap_selftest },
		{ "sched", sched_selftest },
		{ "kho", kho_selftest },
	};
	bool ok = true;

	for (u64 i = 0; i < ARRAY_SIZE(tests); i++) {
		run(tests[i].name, tests[i].fn);
		ok &= !failed;
	}
	return ok;
}
