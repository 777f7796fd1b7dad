/* The kernel's structures as far as the probes look into them. Offsets come from the running
 * kernel's own type information when the probes are loaded (CO-RE): names count here, not order.
 *
 * Where a field has another name or another type in some kernels, a flavour of its structure (its
 * name with three underscores and more) has that one, and an accessor chooses between the two.
 */
#pragma once

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef _Bool bool;
enum { false, true };

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define NULL ((void *)0)

/* Values of the kernel's interface to programs, which do not change. */
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define S_IFCHR 0020000
#define S_IFIFO 0010000
#define MAY_WRITE 2
#define MAY_READ 4
#define MAY_APPEND 8
#define FMODE_READ 1
#define FMODE_WRITE 2
#define PROT_WRITE 2
#define MAP_TYPE 0xf
#define MAP_SHARED 1
#define MAP_SHARED_VALIDATE 3
#define VM_SHARED 8
#define VM_MAYWRITE 0x20
#define SB_KERNMOUNT (1 << 22)
#define PF_EXITING 0x4
#define PF_KTHREAD 0x00200000
#define TASK_INTERRUPTIBLE 1
#define PTRACE_MODE_ATTACH 2
#define SIGCHLD 17
#define SI_KERNEL 0x80
#define SI_TIMER (-2)
#define CLD_EXITED 1
#define CLD_DUMPED 3
#define SIGNAL_IGNORED 1
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_NETLINK 16
#define AF_PACKET 17
#define AF_ALG 38
#define AF_VSOCK 40
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define TCP_LISTEN 10
#define MEM_MAJOR 1
/* Where they are no enumerations. */
#define TTY_DRIVER_TYPE_PTY 4
#define PTY_TYPE_MASTER 1
#define MINORBITS 20

/* Magic numbers of file systems. */
#define PROC_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define CGROUP2_MAGIC 0x63677270
#define CGROUP_MAGIC 0x27e0eb
#define DEBUGFS_MAGIC 0x64626720
#define TRACEFS_MAGIC 0x74726163
#define SECURITYFS_MAGIC 0x73636673
#define BPF_FS_MAGIC 0xcafe4a11
#define ANON_INODE_MAGIC 0x09041934
#define TMPFS_MAGIC 0x01021994
#define NFS_MAGIC 0x6969
#define CIFS_MAGIC 0xff534d42
#define SMB2_MAGIC 0xfe534d42
#define V9FS_MAGIC 0x01021997
#define CEPH_MAGIC 0x00c36400
#define AFS_MAGIC 0x5346414f
#define FUSE_MAGIC 0x65735546
#define MQUEUE_MAGIC 0x19800202

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	unsigned long s_flags;
};

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	u32 i_generation;
	u32 i_rdev;
	struct super_block *i_sb;
};

struct file_operations {
	int (*release)(struct inode *, struct file *);
};

struct file {
	u32 f_mode;
	struct inode *f_inode;
	const struct file_operations *f_op;
	void *private_data;
};

struct dentry {
	struct inode *d_inode;
};

struct path {
	struct dentry *dentry;
};

struct vm_area_struct {
	unsigned long vm_flags;
	struct file *vm_file;
};

/* Since 6.19 beside the other, which is to go. */
struct vma_flags___words {
	unsigned long __vma_flags[1];
};

struct vm_area_struct___words {
	struct vma_flags___words flags;
};

struct tty_driver {
	int major;
	int minor_start;
	short type;
	short subtype;
};

/* In later kernels these are enumerations, with other values. */
enum tty_driver_type {
	TTY_DRIVER_TYPE_PTY___enum,
};

enum tty_driver_subtype {
	PTY_TYPE_MASTER___enum,
};

struct tty_driver___enum {
	enum tty_driver_type type;
	enum tty_driver_subtype subtype;
};

struct tty_struct {
	int index;
	struct tty_driver *driver;
	struct tty_struct *link;
};

struct tty_file_private {
	struct tty_struct *tty;
};

struct fdtable {
	u32 max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct ns_common {
	u32 inum;
};

struct ipc_namespace {
	struct ns_common ns;
};

struct nsproxy {
	struct ipc_namespace *ipc_ns;
};

struct signal_struct {
	struct tty_struct *tty;
};

struct task_struct {
	u32 __state;
	u32 flags;
	u32 ptrace;
	int pid;
	int tgid;
	struct task_struct *real_parent;
	struct task_struct *parent;
	struct task_struct *group_leader;
	u64 start_boottime;
	char comm[16];
	struct files_struct *files;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
};

/* Before 5.14. */
struct task_struct___state {
	long state;
};

struct in6_addr {
	u8 bytes[16];
};

typedef struct {
	long long counter;
} atomic64_t;

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	u8 skc_state;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	u16 sk_type;
	u16 sk_protocol;
};

struct unix_sock {
	struct sock *peer;
};

struct netlink_sock {
	u32 portid;
	u32 dst_portid;
};

struct socket {
	struct sock *sk;
};

struct msghdr {
	void *msg_name;
};

struct kern_ipc_perm {
	int id;
	unsigned long seq;
};

struct kernel_siginfo {
	int si_code;
};

struct fsnotify_mark {
	struct fsnotify_group *group;
};

struct io_kiocb {
	struct file *file;
};

struct pt_regs {
	unsigned long di;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#pragma clang attribute pop

/* A pointer that only serves as an identity, as the number that it is. The verifier forbids
 * arithmetic and comparisons on what it knows to be a pointer, and of which fields it knows that
 * depends on the kernel: a copy that a helper has made is a number everywhere. */
#define POINTER_NUMBER(from, fields...)                                                            \
	({                                                                                         \
		u64 number_ = 0;                                                                   \
		BPF_CORE_READ_INTO(&number_, from, fields);                                        \
		number_;                                                                           \
	})

/* The same for one that the probe was called with. */
static __always_inline u64 pointer_number(const void *pointer)
{
	const void *kept = pointer;
	u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &kept);
	return number;
}

static __always_inline bool is_pty(struct tty_driver *driver)
{
	struct tty_driver___enum *newer = (void *)driver;

	if (bpf_core_field_exists(driver->type))
		return BPF_CORE_READ(driver, type) == TTY_DRIVER_TYPE_PTY;
	return BPF_CORE_READ(newer, type) ==
	       bpf_core_enum_value(enum tty_driver_type, TTY_DRIVER_TYPE_PTY___enum);
}

static __always_inline bool is_pty_master(struct tty_driver *driver)
{
	struct tty_driver___enum *newer = (void *)driver;

	if (bpf_core_field_exists(driver->subtype))
		return BPF_CORE_READ(driver, subtype) == PTY_TYPE_MASTER;
	return BPF_CORE_READ(newer, subtype) ==
	       bpf_core_enum_value(enum tty_driver_subtype, PTY_TYPE_MASTER___enum);
}

static __always_inline u32 task_state(struct task_struct *task)
{
	struct task_struct___state *older = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return task->__state;
	return BPF_CORE_READ(older, state);
}

static __always_inline unsigned long vma_flags(struct vm_area_struct *vma)
{
	struct vm_area_struct___words *newer = (void *)vma;

	if (bpf_core_field_exists(vma->vm_flags))
		return vma->vm_flags;
	return BPF_CORE_READ(newer, flags.__vma_flags[0]);
}

/* Kernels number their helpers alike; older ones lack the later ones. */
enum bpf_func_id___later {
	BPF_FUNC_skc_to_unix_sock___later = 178,
};

/* From the kernel's interface to programs: laid out so everywhere. */
struct sockaddr_in {
	u16 family;
	u16 port;
	u32 addr;
};

struct sockaddr_in6 {
	u16 family;
	u16 port;
	u32 flowinfo;
	u8 addr[16];
};

struct sockaddr_nl {
	u16 family;
	u16 pad;
	u32 portid;
	u32 groups;
};

struct sockaddr_vm {
	u16 family;
	u16 reserved;
	u32 port;
	u32 cid;
};
