/* Sub-trees: named blobs that a part of the kernel leaves for its like in the next one.
 *
 * The root FDT has a node for each, with the blob's address and size. It records them only: that the blob's memory is
 * preserved is the business of whoever adds it. What the incoming FDT says about a blob is a claim, and is verified to
 * be RAM outside scratch before it is given to anybody.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "printk.h"
#include "string.h"

static int add_node(void *fdt, const char *name, phys_addr_t phys, u64 size)
{
	int node = fdt_add_subnode(fdt, PAGE_SIZE, FDT_ROOT, name), err;

	if (node < 0)
		return node;
	err = fdt_setprop_u64(fdt, PAGE_SIZE, node, KHO_SUB_TREE_PROP_NAME, phys);
	if (!err)
		err = fdt_setprop_u64(fdt, PAGE_SIZE, node, KHO_SUB_TREE_SIZE_PROP_NAME, size);
	return err;
}

int kho_add_subtree(const char *name, void *blob, u64 size)
{
	static u8 before[PAGE_SIZE];	/* under the lock: a half-added node is undone as a whole */
	void *fdt = kho_out.fdt;
	int err;

	if (!kho_enable)
		return -EOPNOTSUPP;
	if (!fdt)
		return -EINVAL;
	mutex_lock(&kho_out.fdt_lock);
	memcpy(before, fdt, PAGE_SIZE);
	err = fdt_pack(fdt);
	if (!err)
		err = add_node(fdt, name, virt_to_phys(blob), size);
	if (err)
		memcpy(fdt, before, PAGE_SIZE);
	mutex_unlock(&kho_out.fdt_lock);
	if (!err)
		kho_debugfs_add(name, blob, size);
	if (err == -FDT_ERR_EXISTS)
		return -EEXIST;
	return err ? -ENOMEM : 0;
}

void kho_remove_subtree(void *blob)
{
	void *fdt = kho_out.fdt;
	u64 phys;

	if (!fdt)
		return;
	mutex_lock(&kho_out.fdt_lock);
	fdt_pack(fdt);
	for (int node = fdt_first_subnode(fdt, FDT_ROOT); node >= 0; node = fdt_next_subnode(fdt, node))
		if (!fdt_getprop_u64(fdt, node, KHO_SUB_TREE_PROP_NAME, &phys) && phys == virt_to_phys(blob)) {
			fdt_del_node(fdt, node);
			break;
		}
	mutex_unlock(&kho_out.fdt_lock);
	kho_debugfs_remove(blob);
}

bool kho_subtree_blob(int node, phys_addr_t *phys, u64 *size)
{
	const void *fdt = kho_in_fdt();
	u64 start;

	if (fdt_getprop_u64(fdt, node, KHO_SUB_TREE_PROP_NAME, phys) ||
	    fdt_getprop_u64(fdt, node, KHO_SUB_TREE_SIZE_PROP_NAME, size))
		return false;
	start = ALIGN_DOWN(*phys, PAGE_SIZE);
	return *size && *phys + *size >= *phys && claim_is_outside(claim(start), *phys + *size - start, PAGE_SIZE);
}

int kho_retrieve_subtree(const char *name, phys_addr_t *phys, u64 *size)
{
	const void *fdt = kho_in_fdt();
	u64 blob, blob_size;
	int node;

	if (!fdt)
		return -ENOENT;
	if (!phys)
		return -EINVAL;
	node = fdt_subnode(fdt, FDT_ROOT, name);
	if (node < 0)
		return -ENOENT;
	if (fdt_getprop_u64(fdt, node, KHO_SUB_TREE_PROP_NAME, &blob))
		return -EINVAL;
	if (fdt_getprop_u64(fdt, node, KHO_SUB_TREE_SIZE_PROP_NAME, &blob_size)) {
		pr_warn("broken KHO subnode '%s' is missing or has an invalid blob-size property\n", name);
		return -EINVAL;
	}
	if (!kho_subtree_blob(node, &blob, &blob_size)) {
		pr_warn("blob of '%s', 0x%llx+0x%llx, is not in RAM outside scratch\n", name,
			(unsigned long long)blob, (unsigned long long)blob_size);
		return -EINVAL;
	}
	*phys = blob;
	if (size)
		*size = blob_size;
	return 0;
}
