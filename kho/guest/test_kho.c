/* The KHO test in the manner of Linux (lib/test_kho.c there) and in its format, kho-test-v1: either can
 * restore what the other saved.
 *
 *	save		folios of random orders, random contents, max_mem bytes of them; their list (address | order) in a
 *			vmalloc area; both preserved. An FDT in the sub-tree "kho_test" says how many, where the list is,
 *			and the checksum of all contents.
 *	restore		the list, then each folio; order and contents verified; all of it freed.
 *
 * The checksum alone cannot say which page is wrong, and not that two pages changed places. Contents of our
 * own kernels are therefore patterns that need one number only, which is in our own sub-tree
 * (test_areas.c): then every word is compared and a page that is wrong is named.
 *
 * Parameters: test_kho=off, test_kho.max_mem=SIZE, test_kho.order=N (all folios of that order).
 */
#define pr_fmt(fmt) "test_kho: " fmt
#include "test_kho.h"
#include "breakage.h"
#include "errno.h"
#include "fdt.h"
#include "init.h"
#include "kexec.h"
#include "kho.h"
#include "pattern.h"
#include "printk.h"
#include "random.h"
#include "sdt.h"
#include "sha256.h"
#include "string.h"
#include "workload.h"

#define NR_ORDERS		(MAX_PAGE_ORDER + 1)
#define PROBLEMS_SHOWN_MAX	16
#define FOLIOS_SHOWN_MAX	64	/* one by one, with loglevel=8 */
#define DIGESTED_ENTRIES_MAX	512	/* of the list: what says whether two machines place alike */

/* What was saved, until the jump; or what has been read. */
struct test_data {
	void *fdt;
	u64 *list;			/* phys | order */
	struct kho_vmalloc list_desc;
	u32 nr_folios;
	u32 csum;
};

struct summary {
	struct {
		u32 folios, csum;
	} order[NR_ORDERS];
	u64 bytes;
	u32 csum;
};

static bool enabled = true;
static u64 max_mem = (PAGE_SIZE << MAX_PAGE_ORDER) * 2;
static u64 fixed_order = NR_ORDERS;	/* none */
static struct test_data saved;

static int set_enabled(const char *value)
{
	return kstrtobool(value, &enabled);
}
kernel_param("test_kho", set_enabled);

static int set_max_mem(const char *value)
{
	const char *end;

	max_mem = memparse(value, &end);
	return *end || end == value || max_mem < PAGE_SIZE ? -EINVAL : 0;
}
kernel_param("test_kho.max_mem", set_max_mem);

static int set_order(const char *value)
{
	u64 order;

	if (kstrtou64(value, 0, &order) || order >= NR_ORDERS)
		return -EINVAL;
	fixed_order = order;
	return 0;
}
kernel_param("test_kho.order", set_order);

static phys_addr_t entry_phys(u64 entry)
{
	return entry & PAGE_MASK;
}

static u64 entry_order(u64 entry)
{
	return entry & ~PAGE_MASK;
}

static u32 csum_add(u32 a, u32 b)
{
	u32 sum;

	return __builtin_add_overflow(a, b, &sum) ? sum + 1 : sum;
}

static void summarise(struct summary *s, u32 i, u64 entry, u32 csum)
{
	unsigned int order = (unsigned int)entry_order(entry);

	if (i < FOLIOS_SHOWN_MAX)
		pr_debug("folio %2u: order %2u at 0x%09lx, checksum 0x%08x\n", i, order, entry_phys(entry), csum);
	s->order[order].folios++;
	s->order[order].csum = csum_add(s->order[order].csum, csum);
	s->csum = csum_add(s->csum, csum);
	s->bytes += PAGE_SIZE << order;
}

static void print_summary(const struct summary *s, const struct test_data *data, const char *what)
{
	struct sha256 sha;
	u8 digest[32];
	char text[2 * sizeof(digest) + 1];

	for (unsigned int order = 0; order < NR_ORDERS; order++) {
		if (s->order[order].folios)
			pr_info("order %2u: %u folios, %lu pages, checksum 0x%08x\n", order, s->order[order].folios,
				(u64)s->order[order].folios << order, s->order[order].csum);
	}
	sha256_init(&sha);
	sha256_update(&sha, data->list, min(data->nr_folios, DIGESTED_ENTRIES_MAX) * sizeof(*data->list));
	sha256_update(&sha, s->order, sizeof(s->order));
	sha256_final(&sha, digest);
	for (unsigned int i = 0; i < sizeof(digest); i++)
		scnprintf(text + 2 * i, 3, "%02x", digest[i]);
	pr_info("%s %u folios, %lu pages, checksum 0x%08x, digest %s\n", what, data->nr_folios,
		s->bytes >> PAGE_SHIFT, s->csum, text);
}

/* ---- restore ---- */

int test_retrieve_fdt(const char *name, const char *compatible, void **fdt)
{
	phys_addr_t phys;
	u64 size;
	int err = kho_retrieve_subtree(name, &phys, &size);

	if (err == -ENOENT)
		return err;
	if (err || !IS_ALIGNED(phys, PAGE_SIZE) || size > PAGE_SIZE || !pfn_valid(PFN_DOWN(phys))) {
		verdict_fail("sub-tree %s is no page in RAM", name);
		return -EINVAL;
	}
	*fdt = phys_to_virt(phys);
	err = fdt_check(*fdt, size);
	if (err)
		verdict_fail("sub-tree %s at 0x%lx is no FDT: error %d", name, phys, err);
	else if (fdt_node_compatible(*fdt, FDT_ROOT, compatible))
		verdict_fail("sub-tree %s at 0x%lx is not compatible with %s", name, phys, compatible);
	else
		return 0;
	return -EINVAL;
}

static int read_fdt(struct test_data *data)
{
	u32 magic, len;
	const void *info;
	int node;

	if (fdt_getprop_u32(data->fdt, FDT_ROOT, "magic", &magic) || magic != TEST_KHO_MAGIC)
		return -EINVAL;
	node = fdt_subnode(data->fdt, FDT_ROOT, "data");
	if (node < 0)
		return -EINVAL;
	info = fdt_getprop(data->fdt, node, "folios_info", &len);
	if (!info || len != sizeof(data->list_desc))
		return -EINVAL;
	memcpy(&data->list_desc, info, sizeof(data->list_desc));
	if (fdt_getprop_u32(data->fdt, node, "nr_folios", &data->nr_folios) ||
	    fdt_getprop_u32(data->fdt, node, "csum", &data->csum))
		return -EINVAL;
	/* The list must be as long as it is said to be. */
	if ((u64)data->nr_folios * sizeof(*data->list) > (u64)data->list_desc.total_pages * PAGE_SIZE)
		return -EINVAL;
	return 0;
}

/* One folio: restored, verified, freed. pattern is NULL when nobody knows the contents. False and a message
 * if anything is wrong. */
static bool restore_folio(u32 i, u64 entry, const struct pattern *pattern, struct summary *summary, bool show)
{
	phys_addr_t phys = entry_phys(entry);
	u64 order = entry_order(entry), size;
	struct folio *folio;
	s64 at = -1;

	folio = order < NR_ORDERS ? kho_restore_folio(phys) : NULL;
	if (!folio) {
		if (show)
			verdict_fail("folio %u (order %lu at 0x%lx) was not preserved", i, order, phys);
		return false;
	}
	if (folio_order(folio) != order) {
		if (show)
			verdict_fail("folio %u at 0x%lx was saved with order %lu and restored with %u", i, phys, order,
				     folio_order(folio));
		folio_put(folio);
		return false;
	}
	size = PAGE_SIZE << order;
	summarise(summary, i, entry, csum_partial(folio_address(folio), size, 0));
	if (pattern)
		at = pattern_check(*pattern, folio_address(folio), size);
	if (at >= 0 && show)
		verdict_fail("folio %u (order %lu at 0x%lx): page %lu at 0x%lx changed, at byte %lu", i, order, phys,
			     (u64)at >> PAGE_SHIFT, (phys + (u64)at) & PAGE_MASK, (u64)at & ~PAGE_MASK);
	folio_put(folio);
	return at < 0;
}

/* Goes on after an error, so that one page that was lost loses no others. */
static bool restore_folios(const struct test_data *data, const u64 *seed)
{
	struct summary summary = { 0 };
	u32 problems = 0;

	for (u32 i = 0; i < data->nr_folios; i++) {
		struct pattern pattern;

		if (seed)
			pattern = make_pattern(*seed, i);
		if (!restore_folio(i, data->list[i], seed ? &pattern : NULL, &summary, problems < PROBLEMS_SHOWN_MAX))
			problems++;
	}
	print_summary(&summary, data, "restored");
	if (summary.csum != data->csum) {
		verdict_fail("the checksum of the folios is 0x%08x, not 0x%08x", summary.csum, data->csum);
		problems++;
	}
	if (problems)
		pr_err("%u problems\n", problems);
	return !problems;
}

static bool restore(struct test_data *data, const u64 *seed)
{
	bool ok;

	if (read_fdt(data)) {
		verdict_fail("the FDT of sub-tree %s is not as it should be", TEST_KHO_SUBTREE);
		return false;
	}
	if (data->nr_folios) {
		data->list = kho_restore_vmalloc(&data->list_desc);
		if (!data->list) {
			verdict_fail("the list of folios cannot be restored");
			return false;
		}
	}
	ok = restore_folios(data, seed);
	vfree(data->list);
	kho_restore_free(data->fdt);
	return ok;
}

static int test_kho_init(void)
{
	struct test_data data = { 0 };
	bool ours, ok;
	u64 seed;
	int err;

	if (!enabled || !kho_is_enabled())
		return 0;
	ours = test_areas_restore(&seed);
	err = test_retrieve_fdt(TEST_KHO_SUBTREE, TEST_KHO_COMPATIBLE, &data.fdt);
	if (err == -ENOENT) {
		if (previous_was_ours())
			verdict_fail("sub-tree %s is not there", TEST_KHO_SUBTREE);
		return 0;
	}
	ok = !err && restore(&data, ours ? &seed : NULL);
	PROBE2(test_kho, restored, ok, data.nr_folios);
	if (ok)
		pr_info("KHO restore succeeded\n");
	else
		pr_err("KHO restore failed\n");
	if (!ok && !verdict_failed())
		verdict_fail("the KHO test failed");
	return 0;
}
device_initcall(test_kho_init);

/* ---- negative controls ---- */

static bool breaks_order(const char *name, unsigned int order, u64 *n)
{
	char class[16];

	scnprintf(class, sizeof(class), "%s%u", name, order);
	return breaks(class, n);
}

/* The folio that `break=NAME<order>:N` asks for: the Nth of that order. False if none is asked for, or if
 * there are not so many, which is an error. */
static bool broken_folio(const struct test_data *data, const char *name, u32 *found)
{
	for (unsigned int order = 0; order < NR_ORDERS; order++) {
		u64 n;

		if (!breaks_order(name, order, &n))
			continue;
		for (u32 i = 0; i < data->nr_folios; i++) {
			if (entry_order(data->list[i]) == order && !n--) {
				*found = i;
				return true;
			}
		}
		verdict_fail("break=%s%u: there are only %u folios", name, order, data->nr_folios);
	}
	return false;
}

/* ---- save ---- */

/* The order of which `break=` wants a folio that is not there yet; NR_ORDERS if there is none. */
static unsigned int wanted_order(u32 nr_folios)
{
	for (unsigned int order = 0; order < NR_ORDERS; order++) {
		u64 n;

		if (breaks_order("folio", order, &n) || breaks_order("corrupt", order, &n))
			return nr_folios <= n ? order : NR_ORDERS;
	}
	return NR_ORDERS;
}

static struct folio *alloc_folio(u32 nr_folios, u64 bytes_left)
{
	unsigned int order = (unsigned int)fixed_order;
	struct folio *folio;

	if (fixed_order < NR_ORDERS)
		return folio_alloc(GFP_KERNEL, order);
	order = wanted_order(nr_folios);
	if (order == NR_ORDERS) {
		/* At most half of what is left: then there is room for small ones too. */
		order = (unsigned int)get_random_below(NR_ORDERS);
		while (PAGE_SIZE << order > bytes_left / 2 && order)
			order--;
	}
	while (PAGE_SIZE << order > bytes_left)
		order--;
	while (!(folio = folio_alloc(GFP_KERNEL | __GFP_NOWARN, order)) && order)
		order--;
	return folio;
}

static void free_folios(struct test_data *data)
{
	for (u32 i = 0; i < data->nr_folios; i++)
		folio_put((struct folio *)phys_to_page(entry_phys(data->list[i])));
}

/* As many folios as max_mem allows, listed in an area of exactly the size that the list needs. */
static int alloc_folios(struct test_data *data)
{
	u64 smallest = PAGE_SIZE << (fixed_order < NR_ORDERS ? fixed_order : 0);
	u64 left = ALIGN_DOWN(max_mem, smallest), *list;

	list = left ? vmalloc(left / smallest * sizeof(*list)) : NULL;
	if (!list)
		return -ENOMEM;
	data->list = list;
	while (left) {
		struct folio *folio = alloc_folio(data->nr_folios, left);

		if (!folio)
			goto undo;
		list[data->nr_folios++] = PFN_PHYS(folio_pfn(folio)) | folio_order(folio);
		left -= PAGE_SIZE << folio_order(folio);
	}
	data->list = vmalloc(data->nr_folios * sizeof(*list));
	if (!data->list) {
		data->list = list;
		goto undo;
	}
	memcpy(data->list, list, data->nr_folios * sizeof(*list));
	vfree(list);
	return 0;

undo:
	free_folios(data);
	vfree(list);
	return -ENOMEM;
}

static void fill_folios(struct test_data *data, u64 seed)
{
	struct summary summary = { 0 };

	for (u32 i = 0; i < data->nr_folios; i++) {
		u64 entry = data->list[i], size = PAGE_SIZE << entry_order(entry);

		summarise(&summary, i, entry,
			  pattern_fill(make_pattern(seed, i), phys_to_virt(entry_phys(entry)), size, 0));
	}
	data->csum = summary.csum;
	print_summary(&summary, data, "saved");
	PROBE2(test_kho, saved, data->nr_folios, summary.bytes);
}

static struct folio *folio_at(const struct test_data *data, u32 i)
{
	return (struct folio *)phys_to_page(entry_phys(data->list[i]));
}

static int preserve_folios(struct test_data *data)
{
	u32 i;
	int err = 0;

	for (i = 0; i < data->nr_folios; i++) {
		err = kho_preserve_folio(folio_at(data, i));
		if (err)
			break;
	}
	while (err && i--)
		kho_unpreserve_folio(folio_at(data, i));
	return err;
}

static void unpreserve_folios(struct test_data *data)
{
	for (u32 i = 0; i < data->nr_folios; i++)
		kho_unpreserve_folio(folio_at(data, i));
}

static int write_fdt(struct test_data *data)
{
	struct fdt_writer w;

	fdt_create(&w, data->fdt, PAGE_SIZE);
	fdt_begin_node(&w, "");
	fdt_property_string(&w, "compatible", TEST_KHO_COMPATIBLE);
	fdt_property_u32(&w, "magic", TEST_KHO_MAGIC);
	fdt_begin_node(&w, "data");
	fdt_property_u32(&w, "nr_folios", data->nr_folios);
	fdt_property(&w, "folios_info", &data->list_desc, sizeof(data->list_desc));
	fdt_property_u32(&w, "csum", data->csum);
	fdt_end_node(&w);
	fdt_end_node(&w);
	return fdt_finish(&w) ? -ENOSPC : 0;
}

static int save(struct test_data *data, u64 seed)
{
	int err = alloc_folios(data);

	if (err)
		return err;
	fill_folios(data, seed);

	err = kho_preserve_vmalloc(data->list, &data->list_desc);
	if (err)
		goto free_folios;
	err = preserve_folios(data);
	if (err)
		goto unpreserve_list;
	data->fdt = kho_alloc_preserve(PAGE_SIZE);
	if (IS_ERR(data->fdt)) {
		err = (int)PTR_ERR(data->fdt);
		goto unpreserve_folios;
	}
	err = write_fdt(data);
	if (!err)
		err = kho_add_subtree(TEST_KHO_SUBTREE, data->fdt, fdt_totalsize(data->fdt));
	if (!err)
		return 0;

	kho_unpreserve_free(data->fdt);
unpreserve_folios:
	unpreserve_folios(data);
unpreserve_list:
	kho_unpreserve_vmalloc(&data->list_desc);
free_folios:
	free_folios(data);
	vfree(data->list);
	return err;
}

/* ---- what is done wrong on purpose ---- */

static void leave_out_folio(const struct test_data *data)
{
	u32 i;

	if (!broken_folio(data, "folio", &i))
		return;
	pr_warn("break: folio %u (order %lu at 0x%lx) is not preserved\n", i, entry_order(data->list[i]),
		entry_phys(data->list[i]));
	kho_unpreserve_folio(folio_at(data, i));
}

/* Before the jump, when the folios are complete and nobody looks at them any more. */
static void break_before_jump(void)
{
	phys_addr_t phys;
	u32 i;

	test_areas_break();
	test_tree_break();
	if (verdict_failed())		/* nothing was broken: a run that goes on would prove nothing */
		verdict_finish();
	if (!broken_folio(&saved, "corrupt", &i))
		return;
	phys = entry_phys(saved.list[i]) + (PAGE_SIZE << entry_order(saved.list[i])) - 0x123;
	pr_warn("break: folio %u (order %lu): a byte of the page at 0x%lx changes\n", i, entry_order(saved.list[i]),
		phys & PAGE_MASK);
	*(u8 *)phys_to_virt(phys) ^= 0x10;
}

static struct shutdown_hook before_jump = { .name = "test_kho", .fn = break_before_jump };

void test_kho_save(void)
{
	u64 seed = get_random_u64();
	u32 unused;
	int err;

	if (!enabled || !kho_is_enabled())
		return;
	err = save(&saved, seed);
	if (err) {
		verdict_fail("the KHO test cannot save: error %d", err);
		return;
	}
	err = test_areas_save(seed);
	if (err) {
		verdict_fail("the KHO test cannot save its areas: error %d", err);
		return;
	}
	leave_out_folio(&saved);
	broken_folio(&saved, "corrupt", &unused);	/* is it there? */
	register_shutdown(&before_jump);
}
