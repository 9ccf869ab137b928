/* Devices are told that this kernel leaves the machine: those that came last first, since they may need the others. */
#define pr_fmt(fmt) "shutdown: " fmt
#include "kexec.h"
#include "printk.h"
#include "sched.h"

static LIST_HEAD(hooks);
static struct mutex hooks_lock = MUTEX_INIT(hooks_lock);

void register_shutdown(struct shutdown_hook *hook)
{
	mutex_lock(&hooks_lock);
	list_add(&hook->list, &hooks);
	mutex_unlock(&hooks_lock);
}

void device_shutdown(void)
{
	struct shutdown_hook *hook;

	mutex_lock(&hooks_lock);
	while (!list_empty(&hooks)) {
		hook = list_first_entry(&hooks, struct shutdown_hook, list);
		list_del_init(&hook->list);
		if (hook->name)
			pr_info("%s\n", hook->name);
		hook->fn();
	}
	mutex_unlock(&hooks_lock);
}
