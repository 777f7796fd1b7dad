/* The probes: who exchanges data with whom, recorded in the kernel while a window is open.
 *
 *   probe ──► which object (objects.h, sockets.h) ──► recorded once (record.h) ──► the agent
 *
 * `lsm/` probes come first: unlike fentry they lose nothing on preemptible kernels. Where the
 * kernel's BPF LSM is not active, the agent attaches the same programs to security_* by fentry.
 * The others fill the places that have no LSM hook. What stands when a window opens comes from
 * the iterators. A probe that this kernel refuses has a stand-in at its place, at the end of this
 * file. src/tracker/loss.rs has a row for each program: what is uncertain without it.
 */
#include "kernel.h"
#include "may_fail.h"
#include "objects.h"
#include "record.h"
#include "sockets.h"
#include "tracker.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task_btf();
}

/* On a preemptible kernel a task may be preempted inside a program; then the kernel skips that program for
 * all others on its processor (LSM programs excepted). From 6.10 on a program can keep that from
 * happening, but for its first few instructions. */
extern void bpf_preempt_disable(void) __weak __ksym;
extern void bpf_preempt_enable(void) __weak __ksym;

static __always_inline void stay(void)
{
	if (bpf_ksym_exists(bpf_preempt_disable))
		bpf_preempt_disable();
}

static __always_inline void leave(void)
{
	if (bpf_ksym_exists(bpf_preempt_disable))
		bpf_preempt_enable();
}

/* ---- Files: all ways to read and write converge here, io_uring and sendfile included. */

static __always_inline void use_any_file(struct file *file, struct inode *inode, u8 direction)
{
	struct socket *socket;
	struct sock *sk;

	if ((inode->i_mode & S_IFMT) != S_IFSOCK) {
		use_file(current_task(), file, direction, false);
		return;
	}
	/* sendfile to a socket reaches no socket hook before kernel 6.5. */
	socket = bpf_sock_from_file(file);
	if (!socket)
		return;
	sk = socket->sk;
	if (sk)
		use_socket(current_task(), sk, NULL, direction);
}

SEC("lsm/file_permission")
int BPF_PROG(file_permission, struct file *file, int mask)
{
	MAY_FAIL(file_permission);
	u8 direction = 0;

	if (mask & MAY_READ)
		direction |= READS;
	if (mask & (MAY_WRITE | MAY_APPEND))
		direction |= WRITES;
	if (direction)
		use_any_file(file, file->f_inode, direction);
	return 0;
}

static __always_inline int map(struct file *file, unsigned long prot, unsigned long flags)
{
	u32 type = flags & MAP_TYPE;
	bool shared = type == MAP_SHARED || type == MAP_SHARED_VALIDATE;
	u8 direction = READS;

	if (!file)
		return 0;
	/* What may be written later (mprotect) counts as written. */
	if (shared && ((prot & PROT_WRITE) || (file->f_mode & FMODE_WRITE)))
		direction |= WRITES;
	/* Programs and their libraries are mapped privately: if somebody writes one later, the
	 * mappings are looked at when the agent is asked. */
	use_file(current_task(), file, direction, shared);
	return 0;
}

SEC("lsm/mmap_file")
int BPF_PROG(mmap_file, struct file *file, unsigned long requested, unsigned long prot,
	     unsigned long flags)
{
	MAY_FAIL(mmap_file);
	return map(file, prot, flags);
}

/* In its place where there is no BPF LSM: the arguments differ. */
SEC("fentry/security_mmap_file")
int BPF_PROG(security_mmap_file, struct file *file, unsigned long prot, unsigned long flags)
{
	MAY_FAIL(security_mmap_file);
	stay();
	map(file, prot, flags);
	leave();
	return 0;
}

SEC("lsm/file_lock")
int BPF_PROG(file_lock, struct file *file)
{
	MAY_FAIL(file_lock);
	use_file(current_task(), file, READS | WRITES, true);
	return 0;
}

static __always_inline void use_inode(struct task_struct *task, struct inode *inode, u8 direction)
{
	struct object object = {
		.kind = KIND_FILE,
		.a = ((u64)BPF_CORE_READ(inode, i_sb, s_dev) << 32) | BPF_CORE_READ(inode, i_generation),
		.b = BPF_CORE_READ(inode, i_ino),
	};

	use(task, &object, direction, false);
}

/* Before 6.2. */
SEC("lsm/path_truncate")
int BPF_PROG(path_truncate, struct path *path)
{
	MAY_FAIL(path_truncate);
	use_inode(current_task(), BPF_CORE_READ(path, dentry, d_inode), WRITES);
	return 0;
}

/* From 6.2 on: for descriptors. */
SEC("lsm/file_truncate")
int BPF_PROG(file_truncate, struct file *file)
{
	MAY_FAIL(file_truncate);
	use_file(current_task(), file, WRITES, false);
	return 0;
}

/* ---- Pipes, where no file hook is called. */

SEC("fentry/do_splice")
int BPF_PROG(do_splice, struct file *in, long long *in_offset, struct file *out)
{
	MAY_FAIL(do_splice);
	stay();
	use_any_file(in, in->f_inode, READS);
	use_any_file(out, out->f_inode, WRITES);
	leave();
	return 0;
}

SEC("fentry/do_tee")
int BPF_PROG(do_tee, struct file *in, struct file *out)
{
	MAY_FAIL(do_tee);
	stay();
	use_file(current_task(), in, READS, false);
	use_file(current_task(), out, WRITES, false);
	leave();
	return 0;
}

/* The file behind a descriptor of the current task; not a trusted pointer. */
static __always_inline struct file *file_of(int fd)
{
	struct fdtable *table = BPF_CORE_READ(current_task(), files, fdt);
	struct file **files, *file = NULL;

	if ((u32)fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

static __always_inline void use_descriptor(int fd, u16 kind, u8 direction)
{
	struct file *file = file_of(fd);
	struct inode *inode;
	u64 a;

	if (!file)
		return;
	inode = BPF_CORE_READ(file, f_inode);
	a = ((u64)BPF_CORE_READ(inode, i_sb, s_dev) << 32) | BPF_CORE_READ(inode, i_generation);
	if (!direction)
		direction = (BPF_CORE_READ(file, f_mode) & FMODE_WRITE) ? WRITES : READS;
	record_flow(current_task(), kind, a, BPF_CORE_READ(inode, i_ino), direction);
}

SEC("fentry/__x64_sys_vmsplice")
int BPF_PROG(vmsplice, struct pt_regs *regs)
{
	MAY_FAIL(vmsplice);
	stay();
	use_descriptor(BPF_CORE_READ(regs, di), KIND_PIPE, 0);
	leave();
	return 0;
}

/* ---- Queues, semaphores. */

SEC("fentry/do_mq_timedsend")
int BPF_PROG(mq_timedsend, int fd)
{
	MAY_FAIL(mq_timedsend);
	stay();
	use_descriptor(fd, KIND_POSIX_QUEUE, WRITES);
	leave();
	return 0;
}

SEC("fentry/do_mq_timedreceive")
int BPF_PROG(mq_timedreceive, int fd)
{
	MAY_FAIL(mq_timedreceive);
	stay();
	use_descriptor(fd, KIND_POSIX_QUEUE, READS);
	leave();
	return 0;
}

static __always_inline void use_ipc(struct task_struct *task, struct kern_ipc_perm *ipc, u16 kind,
				    u8 direction)
{
	u64 space = BPF_CORE_READ(task, nsproxy, ipc_ns, ns.inum);

	record_flow(task, kind, (space << 32) | (u32)ipc->id, ipc->seq, direction);
}

SEC("lsm/msg_queue_msgsnd")
int BPF_PROG(msgsnd, struct kern_ipc_perm *ipc)
{
	MAY_FAIL(msgsnd);
	use_ipc(current_task(), ipc, KIND_MESSAGE_QUEUE, WRITES);
	return 0;
}

/* Runs in the sender for a receiver that was waiting. */
SEC("lsm/msg_queue_msgrcv")
int BPF_PROG(msgrcv, struct kern_ipc_perm *ipc, void *message, struct task_struct *receiver)
{
	MAY_FAIL(msgrcv);
	use_ipc(receiver, ipc, KIND_MESSAGE_QUEUE, READS);
	return 0;
}

SEC("lsm/sem_semop")
int BPF_PROG(semop, struct kern_ipc_perm *ipc)
{
	MAY_FAIL(semop);
	use_ipc(current_task(), ipc, KIND_SEMAPHORE, READS | WRITES);
	return 0;
}

/* ---- Watches: the actor writes to the group whose owner reads. */

SEC("fentry/inotify_handle_inode_event")
int BPF_PROG(inotify_event, struct fsnotify_mark *mark)
{
	MAY_FAIL(inotify_event);
	stay();
	record_flow(current_task(), KIND_EVENT, POINTER_NUMBER(mark, group), 0, WRITES);
	leave();
	return 0;
}

/* ---- io_uring rings that send messages to each other. */

SEC("fentry/io_msg_ring")
int BPF_PROG(io_msg_ring, struct io_kiocb *request)
{
	MAY_FAIL(io_msg_ring);
	stay();
	record_flow(current_task(), KIND_EVENT, POINTER_NUMBER(request, file, private_data), 0,
		    WRITES);
	leave();
	return 0;
}

/* ---- Sockets. */

SEC("lsm/socket_sendmsg")
int BPF_PROG(socket_sendmsg, struct socket *socket, struct msghdr *msg)
{
	MAY_FAIL(socket_sendmsg);
	struct sock *sk = socket->sk;

	if (sk)
		use_socket(current_task(), sk, msg, WRITES);
	return 0;
}

SEC("lsm/socket_recvmsg")
int BPF_PROG(socket_recvmsg, struct socket *socket)
{
	MAY_FAIL(socket_recvmsg);
	struct sock *sk = socket->sk;

	if (sk)
		use_socket(current_task(), sk, NULL, READS);
	return 0;
}

SEC("lsm/socket_connect")
int BPF_PROG(socket_connect, struct socket *socket, void *address)
{
	MAY_FAIL(socket_connect);
	struct sock *sk = socket->sk;
	struct endpoint to = {};
	u16 family = 0;
	bool stream;

	if (!sk)
		return 0;
	bpf_probe_read_kernel(&family, sizeof(family), address);
	stream = sk->sk_type == SOCK_STREAM;
	if (family == AF_INET) {
		struct sockaddr_in in = {};

		bpf_probe_read_kernel(&in, sizeof(in), address);
		map_v4(&to.address, in.addr);
		to.port = bpf_ntohs(in.port);
	} else if (family == AF_INET6) {
		struct sockaddr_in6 in6 = {};

		bpf_probe_read_kernel(&in6, sizeof(in6), address);
		__builtin_memcpy(&to.address, in6.addr, sizeof(to.address));
		to.port = bpf_ntohs(in6.port);
	} else if (family == AF_VSOCK) {
		struct sockaddr_vm vm = {};

		bpf_probe_read_kernel(&vm, sizeof(vm), address);
		if (vm.cid != VMADDR_CID_LOCAL)
			record_external(current_task(), INTERFACE_VSOCK, vm.cid, WRITES, NULL);
		return 0;
	} else {
		return 0;
	}
	/* Connecting a datagram socket sends nothing. */
	if (!stream)
		return 0;
	if (is_own(&to.address))
		use_listener(current_task(), to.port, WRITES);
	else
		record_external(current_task(), INTERFACE_TCP, 0, WRITES, &to);
	return 0;
}

SEC("lsm/socket_accept")
int BPF_PROG(socket_accept, struct socket *socket)
{
	MAY_FAIL(socket_accept);
	struct sock *sk = socket->sk;
	u16 family;

	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if (family == AF_UNIX) {
		record_flow(current_task(), KIND_UNIX, bpf_get_socket_cookie(sk), 0, READS);
	} else if (family == AF_INET || family == AF_INET6) {
		struct endpoint local = {}, remote = {};

		ends_of(sk, &local, &remote);
		use_listener(current_task(), local.port, READS);
		if (!is_loopback(&local.address))
			record_external(current_task(), INTERFACE_TCP_LISTENING, 0, READS, &local);
	}
	return 0;
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(unix_stream_connect, struct sock *sk, struct sock *listener)
{
	MAY_FAIL(unix_stream_connect);
	record_flow(current_task(), KIND_UNIX, bpf_get_socket_cookie(listener), 0, WRITES);
	return 0;
}

SEC("lsm/unix_may_send")
int BPF_PROG(unix_may_send, struct socket *socket, struct socket *other)
{
	MAY_FAIL(unix_may_send);
	struct task_struct *task = current_task();
	struct sock *to = other->sk;
	u64 signature, cookie;

	if (!to)
		return 0;
	cookie = to->__sk_common.skc_cookie.counter;
	signature = mix(identity(task), (cookie << 2) + 3);
	if (cookie && is_seen(signature))
		return 0;
	if (record_flow(task, KIND_UNIX, bpf_get_socket_cookie(to), 0, WRITES) && cookie)
		set_seen(signature);
	return 0;
}

/* ---- Processes. */

extern const int __preempt_count __ksym __weak;
struct pcpu_hot {
	int preempt_count;
} __attribute__((preserve_access_index));
extern const struct pcpu_hot pcpu_hot __ksym __weak;

/* Whether the current task only lends its time to an interrupt. Where the kernel's count cannot be read,
 * or the meaning of its bits is not known, every wake-up counts. */
static __always_inline bool is_borrowed(void)
{
	u32 count;

	if (&__preempt_count)
		count = *(const int *)bpf_this_cpu_ptr(&__preempt_count);
	else if (&pcpu_hot)
		count = ((const struct pcpu_hot *)bpf_this_cpu_ptr(&pcpu_hot))->preempt_count;
	else
		return false;
	return count & interrupt_bits;
}

/* Whoever wakes somebody from a sleep that a signal could end has exchanged something with him,
 * whatever it was. This finds readers that were blocked before the window opened. */
SEC("tp_btf/sched_waking")
int BPF_PROG(sched_waking, struct task_struct *sleeper)
{
	MAY_FAIL(sched_waking);
	struct task_struct *task;

	/* In an uninterruptible sleep it waits for the kernel. */
	if (!(task_state(sleeper) & TASK_INTERRUPTIBLE))
		return 0;
	task = current_task();
	if (task->tgid == sleeper->tgid || is_borrowed())
		return 0;
	record_relation(task, sleeper, (task->flags & PF_EXITING) ? RELATION_EXITED : RELATION_WOKE);
	return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(signal_generate, int signal, struct kernel_siginfo *info, struct task_struct *target,
	     int group, int result)
{
	MAY_FAIL(signal_generate);
	struct task_struct *task = current_task();
	int code = 0;

	if (pointer_number(info) == 1)
		return 0; /* from the kernel */
	if (pointer_number(info))
		code = BPF_CORE_READ(info, si_code);
	if (code == SI_KERNEL || code == SI_TIMER || task->tgid == target->tgid || is_borrowed())
		return 0;
	if (signal == SIGCHLD && code >= CLD_EXITED && code <= CLD_DUMPED) {
		/* A parent that ignores it learns of it only if it waits. */
		if (result != SIGNAL_IGNORED)
			record_relation(task, target, RELATION_EXITED);
		return 0;
	}
	record_relation(task, target, RELATION_SIGNALLED);
	return 0;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(ptrace_access_check, struct task_struct *child, unsigned int mode)
{
	MAY_FAIL(ptrace_access_check);
	struct task_struct *task = current_task();

	/* Reading is what ps does. */
	if ((mode & PTRACE_MODE_ATTACH) && task->tgid != child->tgid)
		record_relation(task, child, RELATION_TRACED);
	return 0;
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(ptrace_traceme, struct task_struct *parent)
{
	MAY_FAIL(ptrace_traceme);
	record_relation(parent, current_task(), RELATION_TRACED);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	MAY_FAIL(process_fork);
	stay();
	if (parent->tgid != child->tgid)
		record_relation(parent, child, RELATION_FORKED);
	leave();
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	MAY_FAIL(process_exit);
	stay();
	if (task->pid == task->tgid)
		record_relation(task, task->real_parent, RELATION_ENDED);
	leave();
	return 0;
}

SEC("tp_btf/sched_process_wait")
int BPF_PROG(process_wait)
{
	MAY_FAIL(process_wait);
	struct task_struct *task = current_task();

	stay();
	record_relation(task, task, RELATION_WAITS);
	leave();
	return 0;
}

/* ---- What stands, for the agent to read when a window opens and whenever it is asked. */

static __always_inline void put(struct seq_file *out, struct edge *edge)
{
	bpf_seq_write(out, edge, sizeof(*edge));
}

static __always_inline struct edge standing(struct task_struct *task, struct object *object,
					    u8 direction, u16 origin)
{
	struct edge edge = {};

	edge.key.pid = task->tgid;
	edge.key.start = ticks(task->group_leader->start_boottime);
	edge.key.kind = object->kind;
	edge.key.a = object->a;
	edge.key.b = object->b;
	edge.key.direction = direction;
	edge.value.origin = origin;
	return edge;
}

static __always_inline void put_contact(struct seq_file *out, struct task_struct *task, u8 which,
					u32 detail, const struct endpoint *peer)
{
	struct object object = { KIND_EXTERNAL, interface(which, detail), 0 };
	struct edge edge = standing(task, &object, READS | WRITES, ORIGIN_STANDING);

	if (peer) {
		__builtin_memcpy(edge.value.address, &peer->address, sizeof(edge.value.address));
		edge.value.port = peer->port;
	}
	put(out, &edge);
}

static __always_inline void put_held(struct seq_file *out, struct task_struct *task, u16 kind,
				     u64 a, u64 b)
{
	struct object object = { kind, a, b };
	struct edge edge = standing(task, &object, READS | WRITES, ORIGIN_HELD);

	put(out, &edge);
}

/* A socket: through some, somebody outside may speak at any moment; through the others, another
 * process. */
static __always_inline void put_socket(struct seq_file *out, struct task_struct *task,
				       struct sock *sk)
{
	u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	u16 type = BPF_CORE_READ(sk, sk_type);
	struct endpoint local = {}, remote = {};

	if (family == AF_UNIX) {
		put_held(out, task, KIND_UNIX, bpf_get_socket_cookie(sk), 0);
		return;
	}
	if (family == AF_PACKET) {
		put_contact(out, task, INTERFACE_PACKET, 0, NULL);
		return;
	}
	if (family != AF_INET && family != AF_INET6) {
		if (family == AF_NETLINK)
			put_held(out, task, KIND_NETLINK, netlink_port(sk), 0);
		else if (family == AF_VSOCK && !is_local_vsock(sk))
			put_contact(out, task, INTERFACE_VSOCK, 0, NULL);
		else if (family == AF_VSOCK)
			put_held(out, task, KIND_VSOCK, 0, 0);
		else if (family != AF_ALG)
			put_contact(out, task, INTERFACE_OTHER_SOCKET, family, NULL);
		return;
	}
	ends_of(sk, &local, &remote);
	if (type == SOCK_STREAM) {
		if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_LISTEN) {
			put_held(out, task, KIND_TCP, local.port, LISTENER);
			if (!is_loopback(&local.address))
				put_contact(out, task, INTERFACE_TCP_LISTENING, 0, &local);
		} else if (remote.port && !is_own(&remote.address)) {
			put_contact(out, task, INTERFACE_TCP, 0, &remote);
		} else if (remote.port) {
			u64 ours = folded(&local), theirs = folded(&remote);

			put_held(out, task, KIND_TCP, ours < theirs ? ours : theirs,
				 ours < theirs ? theirs : ours);
		}
	} else if (type == SOCK_DGRAM) {
		if (local.port)
			put_held(out, task, KIND_UDP, local.port, 0);
		if (remote.port ? !is_own(&remote.address) : local.port && !is_loopback(&local.address))
			put_contact(out, task, INTERFACE_UDP, 0, remote.port ? &remote : &local);
	} else {
		put_contact(out, task, INTERFACE_OTHER_IP, BPF_CORE_READ(sk, sk_protocol), NULL);
	}
}

SEC("iter/task_file")
int held_files(struct bpf_iter__task_file *context)
{
	MAY_FAIL(held_files);
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct object object;
	struct socket *socket;
	struct edge edge;
	u8 direction = 0;

	if (!task || !file || task->pid != task->tgid || is_exempt(task))
		return 0;
	socket = bpf_sock_from_file(file);
	if (socket) {
		struct sock *sk = socket->sk;

		if (sk)
			put_socket(context->meta->seq, task, sk);
		return 0;
	}
	object = object_of(file);
	if (object.kind == KIND_NONE || object.kind == KIND_FILE)
		return 0;
	if (file->f_mode & FMODE_READ)
		direction |= READS;
	if (file->f_mode & FMODE_WRITE)
		direction |= WRITES;
	edge = standing(task, &object, direction, ORIGIN_HELD);
	/* Standard input and output of daemons may be a serial line that they never use; whoever has
	 * it as his controlling terminal listens to it. */
	if (object.kind == KIND_EXTERNAL && (direction & READS)) {
		struct tty_file_private *private = (void *)POINTER_NUMBER(file, private_data);
		u64 controlling = POINTER_NUMBER(task, signal, tty);

		if ((object.a >> 32) == INTERFACE_SERIAL && controlling &&
		    controlling == POINTER_NUMBER(private, tty))
			edge.value.origin = ORIGIN_STANDING;
	}
	put(context->meta->seq, &edge);
	return 0;
}

SEC("iter/task_vma")
int mappings(struct bpf_iter__task_vma *context)
{
	MAY_FAIL(mappings);
	struct task_struct *task = context->task;
	struct vm_area_struct *vma = context->vma;
	struct object object;
	struct file_key key;
	struct edge edge;
	struct file *file;
	unsigned long flags;
	u8 direction = READS;

	if (!task || !vma || task->pid != task->tgid || is_exempt(task))
		return 0;
	file = vma->vm_file;
	if (!file)
		return 0;
	object = object_of(file);
	if (object.kind == KIND_NONE)
		return 0;
	key.a = object.a;
	key.b = object.b;
	flags = vma_flags(vma);
	if (flags & VM_SHARED) {
		if (flags & VM_MAYWRITE)
			direction |= WRITES;
	} else if (object.kind == KIND_FILE && !all_written && !bpf_map_lookup_elem(&written, &key)) {
		return 0;
	}
	edge = standing(task, &object, direction, ORIGIN_STANDING);
	put(context->meta->seq, &edge);
	return 0;
}

SEC("iter/task")
int tasks(struct bpf_iter__task *context)
{
	MAY_FAIL(tasks);
	struct task_struct *task = context->task;
	struct task_record record = {};

	if (!task)
		return 0;
	if (task->pid != task->tgid && !task->ptrace)
		return 0;
	record.pid = task->tgid;
	record.parent = task->real_parent->tgid;
	record.start = ticks(task->group_leader->start_boottime);
	record.kernel = !!(task->flags & PF_KTHREAD);
	if (task->ptrace) {
		record.tracer = task->parent->tgid;
		record.tracer_start = ticks(task->parent->group_leader->start_boottime);
	}
	bpf_probe_read_kernel_str(record.comm, sizeof(record.comm), task->comm);
	bpf_seq_write(context->meta->seq, &record, sizeof(record));
	return 0;
}

/* ---- Stand-ins: a program that this kernel refuses is replaced by one in its place that looks at
 * nothing but which process runs there. It says that this process has done what could not be looked at, and
 * through which kinds of objects others may have got something from it. They are loaded only where
 * they are needed. */

#define OF(kind) (1ull << KIND_##kind)
#define SOCKETS (OF(UNIX) | OF(TCP) | OF(UDP) | OF(VSOCK) | OF(NETLINK))
#define FILES                                                                                      \
	(OF(PIPE) | OF(TERMINAL) | OF(FILE) | OF(SHARED_MEMORY) | OF(POSIX_QUEUE) | OF(EVENT) |      \
	 OF(BLOCK_DEVICE))

static __always_inline int unseen(struct task_struct *task, u64 kinds)
{
	u64 signature = mix(mix(identity(task), KIND_UNSEEN), kinds);

	if (is_unwatched(task) || is_seen(signature))
		return 0;
	stay();
	/* It may have been any file: from now on every file counts as written. */
	if (kinds & OF(FILE))
		all_written = 1;
	if (record_flow(task, KIND_UNSEEN, kinds, 0, READS | WRITES))
		set_seen(signature);
	leave();
	return 0;
}

#define STAND_IN(section, name, kinds)                                                             \
	SEC(section)                                                                               \
	int unseen_##name(void *context)                                                           \
	{                                                                                          \
		MAY_FAIL(unseen_##name);                                                           \
		return unseen(current_task(), kinds);                                              \
	}

/* Before 6.5 it alone sees files that are sent to sockets. */
STAND_IN("fentry/security_file_permission", file_permission, FILES | SOCKETS)
STAND_IN("fentry/security_file_lock", file_lock, 0)
STAND_IN("fentry/do_truncate", truncate, OF(FILE))
STAND_IN("fentry/do_splice", do_splice, OF(PIPE))
STAND_IN("fentry/do_tee", do_tee, OF(PIPE))
STAND_IN("fentry/__x64_sys_vmsplice", vmsplice, OF(PIPE))
STAND_IN("fentry/do_mq_timedsend", mq_timedsend, OF(POSIX_QUEUE))
STAND_IN("fentry/do_mq_timedreceive", mq_timedreceive, OF(POSIX_QUEUE))
STAND_IN("fentry/security_msg_queue_msgsnd", msgsnd, OF(MESSAGE_QUEUE))
STAND_IN("fentry/security_sem_semop", semop, OF(SEMAPHORE))
STAND_IN("fentry/inotify_handle_inode_event", inotify_event, OF(EVENT))
STAND_IN("fentry/io_msg_ring", io_msg_ring, OF(EVENT))
STAND_IN("fentry/security_socket_sendmsg", socket_sendmsg, SOCKETS)
STAND_IN("fentry/security_socket_recvmsg", socket_recvmsg, SOCKETS)
STAND_IN("fentry/security_socket_connect", socket_connect, SOCKETS)
STAND_IN("fentry/security_socket_accept", socket_accept, SOCKETS)
STAND_IN("fentry/security_unix_stream_connect", unix_stream_connect, OF(UNIX))
STAND_IN("fentry/security_unix_may_send", unix_may_send, OF(UNIX))

/* What calls the other, which may have been built into it. */
STAND_IN("fentry/fsnotify_insert_event", insert_event, OF(EVENT))

/* Runs in the sender for a receiver that was waiting. */
SEC("fentry/security_msg_queue_msgrcv")
int BPF_PROG(unseen_msgrcv, struct kern_ipc_perm *ipc, void *message, struct task_struct *receiver)
{
	MAY_FAIL(unseen_msgrcv);
	return unseen(receiver, OF(MESSAGE_QUEUE));
}

/* Only a shared mapping writes, and anonymous memory is not shared by name. */
SEC("fentry/security_mmap_file")
int unseen_mmap_file(u64 *arguments)
{
	u32 type = arguments[2] & MAP_TYPE;
	bool shared = type == MAP_SHARED || type == MAP_SHARED_VALIDATE;

	MAY_FAIL(unseen_mmap_file);
	if (!pointer_number((void *)arguments[0]))
		return 0;
	return unseen(current_task(),
		      shared ? OF(FILE) | OF(SHARED_MEMORY) | OF(BLOCK_DEVICE) | OF(EVENT) : 0);
}
