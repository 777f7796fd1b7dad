/* From a file of the kernel to an object that processes share. */
#pragma once
#include "record.h"

extern const void tty_release __ksym __weak;

/* Files that were written in this window, by whom ever. Reading a file that nobody wrote carries
 * nothing: such reads, nearly all there are, need no edge. */
struct file_key {
	u64 a, b;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct file_key);
	__type(value, u8);
} written SEC(".maps");

static __always_inline u32 bucket_of(u64 ino)
{
	return (u32)ino & (WRITE_BUCKETS - 1);
}

struct object {
	u16 kind; /* KIND_NONE: of no interest */
	u64 a, b;
};

static __always_inline bool is_kernel_interface(u64 magic)
{
	return magic == PROC_MAGIC || magic == SYSFS_MAGIC || magic == CGROUP2_MAGIC ||
	       magic == CGROUP_MAGIC || magic == DEBUGFS_MAGIC || magic == TRACEFS_MAGIC ||
	       magic == SECURITYFS_MAGIC || magic == BPF_FS_MAGIC;
}

static __always_inline bool is_network_fs(u64 magic)
{
	return magic == NFS_MAGIC || magic == CIFS_MAGIC || magic == SMB2_MAGIC ||
	       magic == V9FS_MAGIC || magic == CEPH_MAGIC || magic == AFS_MAGIC ||
	       magic == FUSE_MAGIC;
}

static __always_inline u64 interface(u8 which, u32 detail)
{
	return ((u64)which << 32) | detail;
}

/* A terminal is its slave's structure for both ends: the master's descriptors all have one inode. */
static __always_inline void terminal(struct file *file, struct object *object)
{
	struct tty_file_private *private = (void *)POINTER_NUMBER(file, private_data);
	struct tty_struct *tty = BPF_CORE_READ(private, tty);
	struct tty_driver *driver = BPF_CORE_READ(tty, driver);

	if (is_pty(driver)) {
		object->kind = KIND_TERMINAL;
		object->a = is_pty_master(driver) ? POINTER_NUMBER(tty, link) : pointer_number(tty);
		return;
	}
	object->kind = KIND_EXTERNAL;
	object->a = interface(INTERFACE_SERIAL,
			      ((u32)BPF_CORE_READ(driver, major) << MINORBITS) |
				      (BPF_CORE_READ(driver, minor_start) + BPF_CORE_READ(tty, index)));
}

/* Anything but a socket. */
static __always_inline struct object object_of(struct file *file)
{
	struct inode *inode = file->f_inode;
	struct super_block *sb = inode->i_sb;
	u16 type = inode->i_mode & S_IFMT;
	u64 magic = sb->s_magic;
	struct object object = {
		.kind = KIND_NONE,
		.a = ((u64)sb->s_dev << 32) | inode->i_generation,
		.b = inode->i_ino,
	};

	/* They all have one inode, for a while with the type of a file; what is behind them differs. */
	if (type == 0 || magic == ANON_INODE_MAGIC) {
		object.kind = KIND_EVENT;
		object.a = POINTER_NUMBER(file, private_data);
		object.b = 0;
	} else if (type == S_IFREG) {
		if (is_kernel_interface(magic))
			return object;
		object.kind = KIND_FILE;
		if (magic == MQUEUE_MAGIC)
			object.kind = KIND_POSIX_QUEUE;
		if (magic == TMPFS_MAGIC && (sb->s_flags & SB_KERNMOUNT))
			object.kind = KIND_SHARED_MEMORY;
		if (is_network_fs(magic)) {
			object.kind = KIND_EXTERNAL;
			object.a = interface(INTERFACE_NETWORK_FS, magic);
			object.b = 0;
		}
	} else if (type == S_IFIFO) {
		object.kind = KIND_PIPE;
	} else if (type == S_IFCHR) {
		object.b = 0;
		object.a = inode->i_rdev;
		if ((object.a >> MINORBITS) == MEM_MAJOR)
			return object;
		object.kind = KIND_DEVICE;
		if (POINTER_NUMBER(file, f_op, release) == (u64)&tty_release)
			terminal(file, &object);
	} else if (type == S_IFBLK) {
		object.kind = KIND_BLOCK_DEVICE;
		object.a = inode->i_rdev;
		object.b = 0;
	}
	return object;
}

/* Records that a task uses an object. A lasting use, such as a shared mapping, also sees what is
 * written later. */
static __always_inline bool use(struct task_struct *task, struct object *object, u8 direction,
				bool lasting)
{
	struct file_key file = { object->a, object->b };
	u8 yes = 1;

	if (object->kind == KIND_NONE || is_unwatched(task))
		return true;
	if (object->kind == KIND_FILE && !(direction & WRITES) && !lasting && !all_written &&
	    !bpf_map_lookup_elem(&written, &file))
		return true;
	if (object->kind == KIND_FILE && (direction & WRITES) &&
	    !bpf_map_lookup_elem(&written, &file)) {
		if (bpf_map_update_elem(&written, &file, &yes, BPF_ANY)) {
			__sync_fetch_and_add(&table_full, 1);
			return false;
		}
		/* Whoever has read a file of this bucket is asked anew when he reads again. */
		__sync_fetch_and_add(&writes[bucket_of(object->b)], 1);
	}
	return record_flow(task, object->kind, object->a, object->b, direction);
}

/* A file that is no socket is read or written. */
static __always_inline void use_file(struct task_struct *task, struct file *file, u8 direction,
				     bool lasting)
{
	struct inode *inode = file->f_inode;
	u16 type = inode->i_mode & S_IFMT;
	struct object object;
	u64 signature;

	if (type == S_IFCHR && (inode->i_rdev >> MINORBITS) == MEM_MAJOR)
		return; /* null, zero, random */
	signature = mix(identity(task), inode->i_ino + ((u64)inode->i_sb->s_dev << 34) + ((u64)direction << 62) +
						((u64)lasting << 61));
	signature = mix(signature, ((u64)inode->i_generation << 32) + writes[bucket_of(inode->i_ino)] +
					   ((u64)all_written << 31));
	if ((type != S_IFREG && type != S_IFIFO) || inode->i_sb->s_magic == ANON_INODE_MAGIC)
		/* A descriptor, not a name, says which terminal or event it is, and the memory behind
		 * one may serve another later. */
		signature = 0;
	if (signature && is_seen(signature))
		return;
	object = object_of(file);
	if (!signature) {
		signature = mix(mix(identity(task), object.a), ((u64)object.kind << 8) + direction);
		if (is_seen(signature))
			return;
	}
	if (use(task, &object, direction, lasting))
		set_seen(signature);
}
