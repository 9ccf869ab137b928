/* Parameters and initcalls in sections that the host's linker gives a beginning and an end, so that a test can call
 * them by name. Included before everything else. */
#include "../../kernels/include/init.h"

#undef DEFINE_INITCALL
#define DEFINE_INITCALL(level, fn_)							\
	static const struct initcall initcall_##fn_ __section("initcall") __aligned(8) = \
		{ .fn = fn_, .name = #fn_ }
#undef DEFINE_PARAM
#define DEFINE_PARAM(name_, fn_, early_)						\
	static const struct kernel_param param_##fn_ __section("param") __aligned(8) =	\
		{ .name = name_, .handler = fn_, .early = early_ }
