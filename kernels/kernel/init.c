/* The order in which the kernel comes up, and its initcalls. */
#include "arch.h"
#include "console.h"
#include "init.h"
#include "iommu.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "release.h"
#include "sched.h"
#include "sdt.h"
#include "fs.h"
#include "rootfs.h"
#include "task.h"
#include "workload.h"

extern const struct initcall __initcall_start[], __initcall_end[];

static void do_initcalls(void)
{
	for (const struct initcall *call = __initcall_start; call < __initcall_end; call++) {
		int result;

		pr_debug("calling %s\n", call->name);
		PROBE1(initcall, begin, call->fn);
		result = call->fn();
		PROBE2(initcall, end, call->fn, result);
		if (result)
			pr_warn("initcall %s returned %d\n", call->name, result);
	}
}

static void unpack_initramfs(void)
{
	if (!boot_info.initrd_size)
		return;
	if (cpio_unpack(phys_to_virt(boot_info.initrd), boot_info.initrd_size))
		pr_err("initramfs unpacking failed; what was unpacked stays\n");
}

void vfs_init(void);		/* vfs.h, which does not go with fs.h */

static void kernel_init(void *unused)
{
	(void)unused;
	ramfs_init();
	unpack_initramfs();
	vfs_init();
	do_initcalls();
	populate_rootfs();
	show_mem();
	PROBE1(mm, managed, nr_managed_pages());
	PROBE(init, begin);
	run_first_program();
	set_phase("workload");
	workload_run();
}

_Noreturn void start_kernel(void)
{
	cpu_init();
	set_phase("early boot");
	console_init();
	PROBE(kernel, start);
	pr_notice("luemu kernel %s (release \"%s\")\n", RELEASE_VERSION, RELEASE_NAME);
	setup_arch();
	parse_params();
	set_phase("memory");
	mm_core_init();
	set_phase("start of threads and devices");
	sched_init();
	acpi_init();
	iommu_init();
	interrupts_init();
	time_init();
	local_irq_enable();
	set_phase("initcalls");
	if (!kthread_create(kernel_init, NULL, "init"))
		panic("no memory for the init thread");
	cpu_idle();
}
