/* What goes to the next kernel comes into being (fs_initcall): an empty tree, the root FDT, kexec-metadata. */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "init.h"
#include "printk.h"
#include "sdt.h"

static int write_root_fdt(void *fdt, phys_addr_t tree)
{
	struct fdt_writer w;

	fdt_create(&w, fdt, PAGE_SIZE);
	fdt_begin_node(&w, "");
	fdt_property_string(&w, "compatible", KHO_FDT_COMPATIBLE);
	fdt_property_u64(&w, KHO_FDT_MEMORY_MAP_PROP_NAME, tree);
	fdt_end_node(&w);
	return fdt_finish(&w) ? -ENOMEM : 0;
}

static int kho_init(void)
{
	/* Areas of the previous kernel are in the page allocator already, and stay what they are. */
	bool own_scratch = !kho_in.scratch;
	void *fdt;
	int err;

	PROBE(kho, init);
	if (!kho_enable)
		return 0;
	kho_out.tree.root = get_zeroed_page();
	if (!kho_out.tree.root) {
		err = -ENOMEM;
		goto disable;
	}
	fdt = kho_alloc_preserve(PAGE_SIZE);
	if (IS_ERR(fdt)) {
		err = (int)PTR_ERR(fdt);
		goto free_root;
	}
	err = write_root_fdt(fdt, virt_to_phys(kho_out.tree.root));
	if (err)
		goto free_fdt;
	kho_out.fdt = fdt;
	kho_debugfs_init();
	kho_metadata_read();
	err = kho_metadata_write();
	if (err)
		goto free_fdt;
	if (own_scratch)
		kho_scratch_release(MIGRATE_CMA);
	return 0;

free_fdt:
	kho_out.fdt = NULL;
	kho_unpreserve_free(fdt);
free_root:
	free_page(kho_out.tree.root);
	kho_out.tree.root = NULL;
disable:
	if (own_scratch) {
		kho_scratch_release(MIGRATE_MOVABLE);
		kho_scratch_cnt = 0;
	}
	kho_enable = false;
	pr_err("disabled: %d\n", err);
	return err;
}
fs_initcall(kho_init);
