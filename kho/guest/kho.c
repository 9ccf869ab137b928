/* KHO's state, and the switch.
 *
 * `kho=` decides whether this kernel can hand over to the next one. It has no say in what the previous kernel handed
 * over to this one: that memory is taken care of in any case.
 */
#include "kho_internal.h"
#include "init.h"
#include "string.h"

bool kho_enable;
struct kho_in kho_in;
struct kho_out kho_out = {
	.fdt_lock = MUTEX_INIT(kho_out.fdt_lock),
	.tree = { .lock = MUTEX_INIT(kho_out.tree.lock) },
};

bool kho_is_enabled(void)
{
	return kho_enable;
}

/* Even if what was handed over turned out to be of no use. */
bool kho_was_handed_over(void) { return kho_in.scratch != 0; }

bool is_kho_boot(void)
{
	return kho_in.fdt != 0;
}

static int parse_kho(const char *value)
{
	return kstrtobool(value, &kho_enable);
}
early_param("kho", parse_kho);
