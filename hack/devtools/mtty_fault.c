/*
 * Inserted into mtty.c by mtty_patch.py. Faults on demand: each line written to the module parameter "fault",
 *
 *     DEVICE FROM TO MODE DELAY_MS COUNT
 *
 * (states and modes as numbers, "*" for any device) has the next COUNT arcs FROM -> TO of the device hit; "release" lets
 * go on what is held; "clear" does so, too, and takes all faults back. Reading gives each fault with its hits so far.
 *
 * A held arc waits for the release. HOLD waits killably: a process that is killed meanwhile ends at once, and its arc
 * fails with EINTR and is not taken. STUCK does not: such a process ends when the arc has been taken.
 */
enum { FAULT_NONE, FAULT_FAIL, FAULT_ERROR, FAULT_DELAY, FAULT_HOLD, FAULT_STUCK };
#define FAULTS 8
struct mtty_fault {
	char device[64];
	int from, to, mode, delay, left, hits;
};
static struct mtty_fault faults[FAULTS];
static int fault_releases;
static DEFINE_MUTEX(fault_lock);
static DECLARE_WAIT_QUEUE_HEAD(fault_wait);

static int fault_arm(const char *line)
{
	struct mtty_fault new = {};
	int i;

	if (sscanf(line, "%63s %d %d %d %d %d", new.device, &new.from, &new.to, &new.mode, &new.delay, &new.left) != 6)
		return -EINVAL;
	for (i = 0; i < FAULTS; i++) {
		if (!faults[i].device[0]) {
			faults[i] = new;
			return 0;
		}
	}
	return -ENOSPC;
}

static int fault_set(const char *line, const struct kernel_param *param)
{
	int ret = 0;

	mutex_lock(&fault_lock);
	if (sysfs_streq(line, "release") || sysfs_streq(line, "clear")) {
		if (sysfs_streq(line, "clear"))
			memset(faults, 0, sizeof(faults));
		WRITE_ONCE(fault_releases, fault_releases + 1);
		wake_up_all(&fault_wait);
	} else {
		ret = fault_arm(line);
	}
	mutex_unlock(&fault_lock);
	return ret;
}

static int fault_get(char *text, const struct kernel_param *param)
{
	int i, length = 0;

	mutex_lock(&fault_lock);
	for (i = 0; i < FAULTS; i++) {
		struct mtty_fault *f = &faults[i];

		if (f->device[0])
			length += scnprintf(text + length, PAGE_SIZE - length, "%s %d %d %d %d %d\n",
					    f->device, f->from, f->to, f->mode, f->left, f->hits);
	}
	mutex_unlock(&fault_lock);
	return length;
}

static const struct kernel_param_ops fault_ops = { .set = fault_set, .get = fault_get };
module_param_cb(fault, &fault_ops, NULL, 0644);

static int mtty_fault(struct mdev_state *mdev_state, enum vfio_device_mig_state cur,
		      enum vfio_device_mig_state new)
{
	int i, releases, mode = FAULT_NONE, delay = 0;

	mutex_lock(&fault_lock);
	releases = fault_releases;
	for (i = 0; i < FAULTS && mode == FAULT_NONE; i++) {
		struct mtty_fault *f = &faults[i];

		if (f->left <= 0 || cur != f->from || new != f->to ||
		    (strcmp(f->device, "*") && strcmp(f->device, dev_name(mdev_state->vdev.dev))))
			continue;
		f->left--;
		f->hits++;
		mode = f->mode;
		delay = f->delay;
	}
	mutex_unlock(&fault_lock);

	switch (mode) {
	case FAULT_FAIL:
		return -EIO;
	case FAULT_ERROR:
		mdev_state->state = VFIO_DEVICE_STATE_ERROR;
		return -EIO;
	case FAULT_DELAY:
		msleep(delay);
		return 0;
	case FAULT_HOLD:
		return wait_event_killable(fault_wait, READ_ONCE(fault_releases) != releases) ? -EINTR : 0;
	case FAULT_STUCK:
		wait_event(fault_wait, READ_ONCE(fault_releases) != releases);
		return 0;
	default:
		return 0;
	}
}
