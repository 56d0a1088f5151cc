/*
 * Inserted into mtty.c by mtty_patch.py. Fault injection by module parameters: the arc fault_from -> fault_to of
 * fault_device (empty: any device) is hit fault_count times.
 */
enum { FAULT_NONE, FAULT_FAIL, FAULT_ERROR, FAULT_DELAY };
static DEFINE_MUTEX(fault_lock);
static char fault_device[64];
static int fault_from = -1, fault_to = -1, fault_mode, fault_delay_ms, fault_count;
module_param_string(fault_device, fault_device, sizeof(fault_device), 0644);
module_param(fault_from, int, 0644);
module_param(fault_to, int, 0644);
module_param(fault_mode, int, 0644);
module_param(fault_delay_ms, int, 0644);
module_param(fault_count, int, 0644);

static int mtty_fault(struct mdev_state *mdev_state, enum vfio_device_mig_state cur,
		      enum vfio_device_mig_state new)
{
	int mode = FAULT_NONE, delay = 0;

	mutex_lock(&fault_lock);
	if (fault_count > 0 && cur == fault_from && new == fault_to &&
	    (!fault_device[0] || !strcmp(fault_device, dev_name(mdev_state->vdev.dev)))) {
		fault_count--;
		mode = fault_mode;
		delay = fault_delay_ms;
	}
	mutex_unlock(&fault_lock);

	if (delay)
		msleep(delay);
	if (mode == FAULT_ERROR)
		mdev_state->state = VFIO_DEVICE_STATE_ERROR;
	return mode == FAULT_FAIL || mode == FAULT_ERROR ? -EIO : 0;
}
