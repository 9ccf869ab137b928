/* The record of an iommufd: where its parts are, and whether they fit together. Pure; everything in it is a claim. */
#include "luo_devices.h"
#include "../../kernels/include/page.h"

#define ID_MAX	0x7fffffffU

static void *behind(const void *p, u64 size) { return (u8 *)p + size; }

struct iommufd_luemu_object *iommufd_luemu_objects(const struct iommufd_luemu_ser *s) { return behind(s, sizeof(*s)); }

struct iommufd_luemu_area *iommufd_luemu_areas(const struct iommufd_luemu_ser *s)
{
	return behind(iommufd_luemu_objects(s), s->nr_objects * sizeof(struct iommufd_luemu_object));
}

struct iommufd_luemu_extent *iommufd_luemu_extents(const struct iommufd_luemu_ser *s)
{
	return behind(iommufd_luemu_areas(s), s->nr_areas * sizeof(struct iommufd_luemu_area));
}

struct iommufd_luemu_range *iommufd_luemu_ranges(const struct iommufd_luemu_ser *s)
{
	return behind(iommufd_luemu_extents(s), s->nr_extents * sizeof(struct iommufd_luemu_extent));
}

/* Ids ascend, so a binary search would do; there are a handful. */
static const struct iommufd_luemu_object *object(const struct iommufd_luemu_ser *s, u32 id, u32 kind)
{
	const struct iommufd_luemu_object *o = iommufd_luemu_objects(s);

	for (u32 i = 0; i < s->nr_objects; i++)
		if (o[i].id == id)
			return o[i].kind == kind ? &o[i] : NULL;
	return NULL;
}

static bool object_ok(const struct iommufd_luemu_ser *s, const struct iommufd_luemu_object *o)
{
	if (!o->id || o->id > ID_MAX || o->reserved)
		return false;
	if (o->kind == IOMMUFD_LUEMU_IOAS)
		return !o->parent && !(o->flags & ~(u32)IOMMUFD_LUEMU_SMALL) && !o->arg;
	if (o->kind == IOMMUFD_LUEMU_HWPT)
		return !(o->flags & ~(u32)IOMMUFD_LUEMU_AUTO) && object(s, o->parent, IOMMUFD_LUEMU_IOAS);
	return o->kind == IOMMUFD_LUEMU_DEVICE && !o->flags && o->arg <= 0xffff &&
	       object(s, o->parent, IOMMUFD_LUEMU_HWPT);
}

/* Areas of an IOAS ascend and do not touch each other's addresses; their extents are the next ones. */
static bool areas_ok(const struct iommufd_luemu_ser *s)
{
	const struct iommufd_luemu_area *a = iommufd_luemu_areas(s);
	const struct iommufd_luemu_extent *e = iommufd_luemu_extents(s);
	u64 next = 0;

	for (u32 i = 0; i < s->nr_areas; i++, a++) {
		u64 size = 0;

		if (!a->size || (a->iova | a->size) % PAGE_SIZE || a->iova + a->size < a->iova || !a->prot ||
		    a->prot > (IOMMUFD_LUEMU_READ | IOMMUFD_LUEMU_WRITE) || a->first_extent != next ||
		    !a->nr_extents || a->nr_extents > s->nr_extents - next || !object(s, a->ioas, IOMMUFD_LUEMU_IOAS))
			return false;
		if (i && (a[-1].ioas > a->ioas || (a[-1].ioas == a->ioas && a[-1].iova + a[-1].size > a->iova)))
			return false;
		next += a->nr_extents;
		for (; a->first_extent + a->nr_extents > (u64)(e - iommufd_luemu_extents(s)); e++) {
			if (!e->size || (e->phys | e->size) % PAGE_SIZE || e->phys + e->size < e->phys ||
			    e->size > a->size - size)
				return false;
			size += e->size;
		}
		if (size != a->size)
			return false;
	}
	return next == s->nr_extents;
}

static bool range_ok(const struct iommufd_luemu_ser *s, const struct iommufd_luemu_range *r)
{
	return r->start <= r->last && r->kind == IOMMUFD_LUEMU_ALLOWED && object(s, r->ioas, IOMMUFD_LUEMU_IOAS);
}

const char *iommufd_luemu_check(const struct iommufd_luemu_ser *s, u64 room)
{
	u64 size = sizeof(*s);

	size += s->nr_objects * sizeof(struct iommufd_luemu_object) + s->nr_areas * sizeof(struct iommufd_luemu_area);
	size += s->nr_extents * sizeof(struct iommufd_luemu_extent) + s->nr_ranges * sizeof(struct iommufd_luemu_range);
	if (s->size > room || s->size != size)
		return "an iommufd's record is impossible";
	if (s->checksum != devices_sum(&s->checksum + 1, s->size - 8))
		return "the checksum of an iommufd's record is wrong";
	if (s->rlimit_mode > 1 || s->reserved || s->reserved2[0] || s->reserved2[1])
		return "an iommufd's record has a reserved field set";
	for (u32 i = 0; i < s->nr_objects; i++)
		if (!object_ok(s, iommufd_luemu_objects(s) + i) ||
		    (i && iommufd_luemu_objects(s)[i].id <= iommufd_luemu_objects(s)[i - 1].id))
			return "an iommufd's objects are impossible";
	if (!areas_ok(s))
		return "an iommufd's areas are impossible";
	for (u32 i = 0; i < s->nr_ranges; i++)
		if (!range_ok(s, iommufd_luemu_ranges(s) + i))
			return "an iommufd's ranges are impossible";
	return NULL;
}
