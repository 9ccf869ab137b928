/* Negative controls: what `break=` may name. A run with one of them has to fail, and to say where.
 *
 *	folio0 … folio10	the Nth folio of that order is left out of the tree	kho/guest/test_kho.c
 *	corrupt0 … corrupt10	a byte of it changes before the jump			kho/guest/test_kho.c
 *	vmalloc, vmallocpage	page N of the area: a byte changes; not preserved	kho/guest/test_areas.c
 *	reserve_mem		a byte of region N changes				kho/guest/test_areas.c
 *	blob, node		a byte of the blob changes; its node is removed		kho/guest/test_areas.c
 *	tree, treenode		leaf N is lost; is said to be where the root is		kho/guest/test_break.c
 *	scratch			area N in the array of the kexec segment is another	kho/guest/test_break.c
 *	digest			the digest of the segments is another			kernel/kexec_file.c
 *	iommu-state		the tables of devices are not handed over		drivers/iommu.c
 *	iommu-off		remapping is off when the next kernel begins		drivers/iommu.c
 *	iotlb			what is unmapped can still be reached			drivers/iommu.c
 *	bus-master		functions that are not handed over are not silenced	drivers/pci_driver.c
 *	interrupt		what came in between is never signalled			drivers/vfio_irq.c
 */
#include "breakage.h"
#include "errno.h"
#include "init.h"
#include "printk.h"
#include "string.h"

#define CLASS_MAX	16

static char class_name[CLASS_MAX];
static u64 number;

bool breaks(const char *class, u64 *n)
{
	if (!class_name[0] || strcmp(class, class_name))
		return false;
	if (n)
		*n = number;
	return true;
}

static bool is_known(const char *class)
{
	static const char *const names[] = {
		"vmalloc", "vmallocpage", "reserve_mem", "blob", "node", "tree", "treenode", "scratch", "digest",
		"iommu-state", "iommu-off", "iotlb", "bus-master", "interrupt",
	};
	char name[CLASS_MAX];

	for (u64 i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(class, names[i]))
			return true;
	}
	for (u64 order = 0; order <= 10; order++) {
		scnprintf(name, sizeof(name), "folio%lu", order);
		if (!strcmp(class, name))
			return true;
		scnprintf(name, sizeof(name), "corrupt%lu", order);
		if (!strcmp(class, name))
			return true;
	}
	return false;
}

static int set_break(const char *value)
{
	const char *colon = strchr(value, ':');
	char name[CLASS_MAX];
	size_t length = colon ? (size_t)(colon - value) : strlen(value);
	u64 n = 0;

	if (length >= CLASS_MAX)
		return -EINVAL;
	memcpy(name, value, length);
	name[length] = '\0';
	if (!is_known(name) || (colon && kstrtou64(colon + 1, 0, &n)))
		return -EINVAL;
	strscpy(class_name, name, CLASS_MAX);
	number = n;
	return 0;
}
early_param("break", set_break);
