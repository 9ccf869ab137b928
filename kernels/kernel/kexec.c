/* The next kernel in memory, until it is started.
 *
 * An image is a set of segments with the places where they will be (their destinations), which this kernel uses for
 * something else until the very end. So their contents wait in ordinary pages, and a list says what is to be copied
 * where. The pages of an image, and everything that the copying itself needs, lie outside all destinations: nothing
 * is overwritten before it was used, and no copy depends on the order of the others. Ordinary pages are never in
 * scratch, so with KHO, where all destinations are in scratch, none is ever turned down for that.
 *
 * The list is made of pages of 512 entries (IND_ in kexec.h), the last of which leads to the next page.
 */
#define pr_fmt(fmt) "kexec_core: " fmt
#include "arch.h"
#include "kexec.h"
#include "liveupdate.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "sdt.h"
#include "string.h"

#define ENTRIES (PAGE_SIZE / sizeof(u64))

/* Held while an image is loaded, and from the request to start it on. Never waited for. */
static struct mutex kexec_lock = MUTEX_INIT(kexec_lock);
static struct kimage *kexec_image;

bool kexec_trylock(void)
{
	return mutex_trylock(&kexec_lock);
}

void kexec_unlock(void)
{
	mutex_unlock(&kexec_lock);
}

struct kimage *kimage_alloc(void)
{
	struct kimage *image = kzalloc(sizeof(*image), GFP_KERNEL);

	if (!image)
		return NULL;
	image->entry = image->last_entry = &image->head;
	INIT_LIST_HEAD(&image->source_pages);
	INIT_LIST_HEAD(&image->control_pages);
	INIT_LIST_HEAD(&image->unusable_pages);
	return image;
}

static void free_list(struct list_head *pages)
{
	while (!list_empty(pages)) {
		struct page *page = list_first_entry(pages, struct page, lru);

		list_del(&page->lru);
		__free_pages(page, 0);
	}
}

void kimage_free(struct kimage *image)
{
	if (!image)
		return;
	free_list(&image->source_pages);
	free_list(&image->control_pages);
	free_list(&image->unusable_pages);
	kfree(image);
}

static bool is_destination(const struct kimage *image, phys_addr_t page)
{
	for (u64 i = 0; i < image->nr_segments; i++) {
		const struct kexec_segment *s = &image->segment[i];

		if (page + PAGE_SIZE > s->mem && page < s->mem + s->memsz)
			return true;
	}
	return false;
}

/* A page outside all destinations; all segments must have their places. */
static struct page *alloc_outside(struct kimage *image, struct list_head *owner)
{
	struct page *page;

	while ((page = alloc_page(GFP_KERNEL)) && is_destination(image, page_to_phys(page)))
		list_add(&page->lru, &image->unusable_pages);
	if (page)
		list_add_tail(&page->lru, owner);
	return page;
}

struct page *kimage_alloc_control_page(struct kimage *image)
{
	return alloc_outside(image, &image->control_pages);
}

static int add_entry(struct kimage *image, u64 entry)
{
	if (image->entry == image->last_entry) {
		struct page *page = kimage_alloc_control_page(image);

		if (!page)
			return -ENOMEM;
		*image->entry = page_to_phys(page) | IND_INDIRECTION;
		image->entry = page_address(page);
		image->last_entry = image->entry + ENTRIES - 1;
	}
	*image->entry++ = entry;
	return 0;
}

static struct page *zero_page(struct kimage *image)
{
	if (!image->zero_page) {
		image->zero_page = alloc_outside(image, &image->source_pages);
		if (image->zero_page)
			memset(page_address(image->zero_page), 0, PAGE_SIZE);
	}
	return image->zero_page;
}

static int load_segment(struct kimage *image, const struct kexec_segment *s)
{
	int err = add_entry(image, s->mem | IND_DESTINATION);

	for (u64 at = 0; !err && at < s->memsz; at += PAGE_SIZE) {
		struct page *page;

		if (at < s->bufsz) {
			u64 n = min(s->bufsz - at, PAGE_SIZE);

			page = alloc_outside(image, &image->source_pages);
			if (page) {
				memcpy(page_address(page), (const u8 *)s->buf + at, n);
				memset((u8 *)page_address(page) + n, 0, PAGE_SIZE - n);
			}
		} else {
			page = zero_page(image);
		}
		err = page ? add_entry(image, page_to_phys(page) | IND_SOURCE) : -ENOMEM;
	}
	return err;
}

/* What must hold whoever placed the segments: whole pages, disjoint, contents not larger than their place. */
static bool segments_are_sane(const struct kimage *image)
{
	for (u64 i = 0; i < image->nr_segments; i++) {
		const struct kexec_segment *s = &image->segment[i];

		if (!s->memsz || !IS_ALIGNED(s->mem, PAGE_SIZE) || !IS_ALIGNED(s->memsz, PAGE_SIZE) ||
		    s->mem + s->memsz < s->mem || s->bufsz > s->memsz)
			return false;
		for (u64 k = 0; k < i; k++) {
			const struct kexec_segment *t = &image->segment[k];

			if (s->mem < t->mem + t->memsz && t->mem < s->mem + s->memsz)
				return false;
		}
	}
	return image->nr_segments;
}

int kimage_load_segments(struct kimage *image)
{
	int err = 0;

	if (!segments_are_sane(image))
		return -EINVAL;
	for (u64 i = 0; !err && i < image->nr_segments; i++) {
		err = load_segment(image, &image->segment[i]);
		image->segment[i].buf = NULL;
	}
	if (!err) {
		if (image->entry == &image->head)
			return -EINVAL;
		*image->entry = IND_DONE;
	}
	free_list(&image->unusable_pages);
	return err;
}

void kexec_set_image(struct kimage *image)
{
	struct kimage *before = kexec_image;

	kexec_image = image;
	kimage_free(before);
}

void kexec_unload(void)
{
	mutex_lock(&kexec_lock);
	kexec_set_image(NULL);
	mutex_unlock(&kexec_lock);
}

bool kexec_is_loaded(void)
{
	return READ_ONCE(kexec_image);
}

int kexec_load_segments(const struct kexec_segment *segments, u64 nr_segments, phys_addr_t entry)
{
	struct kimage *image;
	int err = -ENOMEM;

	if (!kexec_trylock())
		return -EBUSY;
	image = kimage_alloc();
	if (image) {
		image->legacy = true;
		image->start = entry;
		image->nr_segments = nr_segments;
		memcpy(image->segment, segments, nr_segments * sizeof(segments[0]));
		err = machine_kexec_prepare(image);
		if (!err)
			err = kimage_load_segments(image);
		if (!err) {
			kexec_set_image(image);
			image = NULL;
		}
	}
	kimage_free(image);
	kexec_unlock();
	return err;
}

/* May the image be started? Serializes live update as the last thing that can refuse. */
static int prepare_reboot(void)
{
	if (!kexec_image)
		return -EINVAL;
	if (!kexec_image->legacy)
		return liveupdate_reboot();
	if (!liveupdate_has_sessions())
		return 0;
	pr_warn("the loaded image was not loaded by kexec_file_load: live update sessions would be lost\n");
	return -EBUSY;
}

int kernel_kexec(void)
{
	int err;

	PROBE(kexec, reboot);
	if (!kexec_trylock())
		return -EBUSY;
	err = prepare_reboot();
	if (err) {
		kexec_unlock();
		return err;
	}
	PROBE(kexec, shutdown);
	set_phase("shutdown for kexec");
	device_shutdown();
	pr_notice("Starting new kernel\n");
	printk_flush();
	machine_shutdown();
	machine_kexec(kexec_image);
}
