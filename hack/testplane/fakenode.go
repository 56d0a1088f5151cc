// This file plays the kubelet for nodes that do not exist: the nodes stay Ready, pods bound to
// them turn Running and Ready at once, and deletions finish at once.

package main

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
)

const (
	heartbeat     = 10 * time.Second // renewal of a node's Lease; the node controller wants one in 40 s
	leaseDuration = int32(40)        // seconds
	podResync     = 5 * time.Second  // how soon a failed pod update is tried again
)

// fakeNodes knows the address of each fake node and counts the pods, to number their addresses.
type fakeNodes struct {
	client  kubernetes.Interface
	address map[string]string
	pods    uint16
}

// startFakeNodes creates the nodes and returns; their heartbeats and pods go on until ctx ends.
func startFakeNodes(ctx context.Context, client *kubernetes.Clientset, names []string) error {
	if len(names) == 0 {
		return nil
	}
	f := &fakeNodes{client: client, address: map[string]string{}}
	for i, name := range names {
		number := i + 1
		f.address[name] = net.IPv4(10, 255, byte(number>>8), byte(number)).String()
		if err := f.register(ctx, name); err != nil {
			return fmt.Errorf("fake node %s: %w", name, err)
		}
		go f.beat(ctx, name)
	}
	// One watch serves all nodes. The handler runs on one goroutine, so f.pods needs no lock.
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", "",
			fields.OneTermNotEqualSelector("spec.nodeName", "")),
		ObjectType:   &corev1.Pod{},
		ResyncPeriod: podResync,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { f.sync(ctx, object) },
			UpdateFunc: func(_, object any) { f.sync(ctx, object) },
		},
	})
	go informer.RunWithContext(ctx)
	return nil
}

// register creates the Node, or takes the one of an earlier run, and makes it Ready.
func (f *fakeNodes) register(ctx context.Context, name string) error {
	nodes := f.client.CoreV1().Nodes()
	_, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
		corev1.LabelHostname:   name,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
	}}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	// the controllers see the new Node as well, and with many of them one is sometimes faster
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		node, err := nodes.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status = nodeStatus(name, f.address[name])
		_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
		return err
	})
}

func nodeStatus(name, address string) corev1.NodeStatus {
	now := metav1.Now()
	resources := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("32"),
		corev1.ResourceMemory:           resource.MustParse("256Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		corev1.ResourcePods:             resource.MustParse("250"),
	}
	return corev1.NodeStatus{
		Capacity:    resources,
		Allocatable: resources,
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: address},
			{Type: corev1.NodeHostName, Address: name},
		},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "FakeNode",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion:  "v0.0.0-fake",
			OperatingSystem: runtime.GOOS,
			Architecture:    runtime.GOARCH,
		},
	}
}

// beat renews the node's Lease. An error costs one beat: the next one is 10 s away, the limit 40 s.
func (f *fakeNodes) beat(ctx context.Context, name string) {
	leases := f.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		now, duration := metav1.NowMicro(), leaseDuration
		lease, err := leases.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			lease.Spec.RenewTime = &now
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		} else if apierrors.IsNotFound(err) {
			_, err = leases.Create(ctx, &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: coordinationv1.LeaseSpec{
					HolderIdentity: &name, LeaseDurationSeconds: &duration, RenewTime: &now,
				},
			}, metav1.CreateOptions{})
		}
		if err != nil && ctx.Err() == nil {
			logf("fake node %s: lease: %v", name, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sync brings one pod to where its kubelet would: gone when deleted, else Running. An update that
// fails (the pod changed meanwhile) is tried again with the pod's next event or resync.
func (f *fakeNodes) sync(ctx context.Context, object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || f.address[pod.Spec.NodeName] == "" {
		return
	}
	pods := f.client.CoreV1().Pods(pod.Namespace)
	var err error
	switch {
	case pod.DeletionTimestamp != nil:
		options := metav1.NewPreconditionDeleteOptions(string(pod.UID))
		options.GracePeriodSeconds = new(int64)
		err = pods.Delete(ctx, pod.Name, *options)
	case pod.Status.Phase == corev1.PodPending || pod.Status.Phase == "":
		_, err = pods.UpdateStatus(ctx, f.running(pod), metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		logf("fake pod %s/%s: %v", pod.Namespace, pod.Name, err)
	}
}

// running returns a copy of the pod with the status of one whose containers all run.
func (f *fakeNodes) running(pod *corev1.Pod) *corev1.Pod {
	f.pods++
	pod = pod.DeepCopy()
	now, started := metav1.Now(), true
	host, address := f.address[pod.Spec.NodeName], net.IPv4(10, 254, byte(f.pods>>8), byte(f.pods)).String()
	if pod.Spec.HostNetwork {
		address = host
	}
	status := &pod.Status
	status.Phase, status.StartTime = corev1.PodRunning, &now
	status.HostIP, status.HostIPs = host, []corev1.HostIP{{IP: host}}
	status.PodIP, status.PodIPs = address, []corev1.PodIP{{IP: address}}
	status.Conditions = nil
	for _, condition := range []corev1.PodConditionType{
		corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady,
	} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now,
		})
	}
	status.InitContainerStatuses, status.ContainerStatuses = nil, nil
	for _, container := range pod.Spec.InitContainers {
		status.InitContainerStatuses = append(status.InitContainerStatuses, corev1.ContainerStatus{
			Name: container.Name, Image: container.Image, ImageID: container.Image, Ready: true,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: now, FinishedAt: now,
			}},
		})
	}
	for _, container := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: container.Name, Image: container.Image, ImageID: container.Image, Ready: true, Started: &started,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return pod
}
