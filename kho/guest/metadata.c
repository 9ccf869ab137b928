/* kexec-metadata: which kernel handed over, and how many updates there have been since the cold boot. */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "printk.h"
#include "release.h"
#include "string.h"

static u32 kexec_count;			/* as received, 0 after a cold boot */

void kho_metadata_read(void)
{
	struct kho_kexec_metadata meta;
	phys_addr_t phys;
	u64 size;
	u32 version;

	if (kho_retrieve_subtree(KHO_METADATA_NODE_NAME, &phys, &size))
		return;
	if (size < sizeof(version)) {
		pr_warn("kexec-metadata blob too small (%llu)\n", (unsigned long long)size);
		return;
	}
	version = get_unaligned_u32(phys_to_virt(phys));
	if (version != KHO_KEXEC_METADATA_VERSION) {
		pr_warn("kexec-metadata version %u not supported (expected %d)\n", version,
			KHO_KEXEC_METADATA_VERSION);
		return;
	}
	if (size < sizeof(meta)) {
		pr_warn("kexec-metadata blob too small for v%u (%llu < %zu)\n", version,
			(unsigned long long)size, sizeof(meta));
		return;
	}
	memcpy(&meta, phys_to_virt(phys), sizeof(meta));
	meta.previous_release[sizeof(meta.previous_release) - 1] = '\0';
	kexec_count = meta.kexec_count;
	pr_info("exec from: %s (count %u)\n", meta.previous_release, kexec_count);
}

int kho_metadata_write(void)
{
	struct kho_kexec_metadata *meta = kho_alloc_preserve(sizeof(*meta));
	int err;

	if (IS_ERR(meta))
		return (int)PTR_ERR(meta);
	meta->version = KHO_KEXEC_METADATA_VERSION;
	strscpy(meta->previous_release, RELEASE_VERSION, sizeof(meta->previous_release));
	meta->kexec_count = kexec_count + 1;
	err = kho_add_subtree(KHO_METADATA_NODE_NAME, meta, sizeof(*meta));
	if (err)
		kho_unpreserve_free(meta);
	return err;
}
