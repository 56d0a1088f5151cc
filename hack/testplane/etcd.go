// This file runs the embedded etcd, on unix sockets in the state directory: no ports to collide.

package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	maxSocketPath = 107 // sun_path less its final NUL
	etcdStart     = 60 * time.Second
)

// startEtcd returns the client endpoint of a ready single-member etcd, which runs until the process ends.
func startEtcd(c *config) (endpoint string, err error) {
	client, err := socketURL(c.path("etcd-client.sock"))
	if err != nil {
		return "", err
	}
	peer, err := socketURL(c.path("etcd-peer.sock"))
	if err != nil {
		return "", err
	}
	cfg := embed.NewConfig()
	cfg.Name = "testplane"
	cfg.Dir = c.path("etcd")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.UnsafeNoFsync = !c.fsync
	cfg.LogLevel = "error"
	cfg.TickMs, cfg.ElectionMs = 10, 100 // alone, it wins its election at once
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "10000"
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return "", err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return client.String(), nil
	case err := <-etcd.Err():
		return "", err
	case <-time.After(etcdStart):
		return "", fmt.Errorf("not ready after %s", etcdStart)
	}
}

// socketURL checks a unix socket's path and removes what an earlier run left there.
func socketURL(path string) (url.URL, error) {
	if len(path) > maxSocketPath {
		return url.URL{}, fmt.Errorf("%s: longer than the %d characters of a unix socket's path; choose a shorter -dir",
			path, maxSocketPath)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return url.URL{}, err
	}
	return url.URL{Scheme: "unix", Path: path}, nil
}
