//! Shares: fewer requests, and answers without interrupts.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
    // A share has extended attributes of users alone. Without this the server would be asked for a file's
    // capabilities whenever its first byte is written or its owner changes (virtio-fs alone has `delete_stale`).
    Edit {
        file: "fs/fuse/xattr.c",
        from: "	return fuse_getxattr(inode, name, value, size);\n",
        to: "\
	if (get_fuse_conn(inode)->delete_stale &&
	    strncmp(name, XATTR_USER_PREFIX, XATTR_USER_PREFIX_LEN))
		return -EOPNOTSUPP;

	return fuse_getxattr(inode, name, value, size);
",
    },
    // Making or removing an entry changes neither the permissions nor the owner of its folder, which the
    // next such call checks. They need not be asked for again each time.
    Edit {
        file: "fs/fuse/dir.c",
        from: "\
static void fuse_dir_changed(struct inode *dir)
{
	fuse_invalidate_attr(dir);
",
        to: "\
static void fuse_dir_changed(struct inode *dir)
{
	fuse_invalidate_attr_mask(dir, STATX_BASIC_STATS & ~(STATX_TYPE |
				  STATX_MODE | STATX_UID | STATX_GID));
",
    },
    // A device of Cabana's, which its vendor's number tells, has answered most requests when the doorbell's
    // write returns. Who waits for an answer looks for it there, without an interrupt, a worker and
    // two switches of threads. Only the sender's own request ends at once: the ends of others may want locks that
    // the sender holds. Where a file is closed and nobody waits, the worker looks, also without an interrupt.
    Edit {
        file: "fs/fuse/virtio_fs.c",
        from: "\
static void virtio_fs_requests_done_work(struct work_struct *work)
{
	struct virtio_fs_vq *fsvq = container_of(work, struct virtio_fs_vq,
						 done_work);
	struct fuse_pqueue *fpq",
        to: "\
static void virtio_fs_end_requests(struct virtio_fs_vq *fsvq,
				   struct fuse_req *own)
{
	struct fuse_pqueue *fpq",
    },
    Edit {
        file: "fs/fuse/virtio_fs.c",
        from: "		if (req->args->may_block) {\n",
        to: "		if (req->args->may_block || (own && req != own)) {\n",
    },
    Edit {
        file: "fs/fuse/virtio_fs.c",
        from: "\
static void virtio_fs_map_queues(struct virtio_device *vdev, struct virtio_fs *fs)
{
",
        to: "\
static void virtio_fs_requests_done_work(struct work_struct *work)
{
	virtio_fs_end_requests(container_of(work, struct virtio_fs_vq,
					    done_work), NULL);
}

static void virtio_fs_map_queues(struct virtio_device *vdev, struct virtio_fs *fs)
{
",
    },
    Edit {
        file: "fs/fuse/virtio_fs.c",
        from: "\
	notify = virtqueue_kick_prepare(vq);

	spin_unlock(&fsvq->lock);

	if (notify)
		virtqueue_notify(vq);

out:
",
        to: "\
	bool cabana = !in_flight && vq->vdev->id.vendor == 0x4e424143;
	/* The sender of a request that waits holds a reference until its end */
	bool waits = cabana && test_bit(FR_ISREPLY, &req->flags) &&
		     !test_bit(FR_BACKGROUND, &req->flags);
	/* Nobody waits for the end of a file that is closed */
	bool closes = cabana && !waits && (req->in.h.opcode == FUSE_RELEASE ||
					   req->in.h.opcode == FUSE_RELEASEDIR);
	if (waits || closes)
		virtqueue_disable_cb(vq);
	notify = virtqueue_kick_prepare(vq);

	spin_unlock(&fsvq->lock);

	if (notify)
		virtqueue_notify(vq);
	if (waits)
		virtio_fs_end_requests(fsvq, req);
	else if (closes)
		schedule_work(&fsvq->done_work);

out:
",
    },
];
