// Command testplane is a real Kubernetes control plane in one process: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, all compiled from their released modules, plus
// fake nodes whose pods only seem to run. The tests and the demo start it and talk to it as to
// any other cluster.
//
// This file holds the flags and the life of the process.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	serviceCIDR = "10.96.0.0/16" // ClusterIPs; nothing routes them here
	serviceIP   = "10.96.0.1"    // of the "kubernetes" Service, the first of serviceCIDR
)

// config is what the command line said.
type config struct {
	dir             string
	host            string
	port            int
	fsync           bool
	exitOnStdinEOF  bool
	apiserverArgs   stringList
	tlsSANs         stringList
	nodeIdentities  stringList
	fakeNodes       stringList
	server          string       // https://host:port, known once listener is open
	apiserverSocket net.Listener // opened first, so that no other process can take the port
}

// path names a file in the state directory.
func (c *config) path(name string) string { return filepath.Join(c.dir, name) }

// stringList is a flag that may be given more than once.
type stringList []string

func (l *stringList) String() string { return strings.Join(*l, " ") }

func (l *stringList) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// ready is the line printed on stdout once the plane serves requests.
type ready struct {
	Server     string  `json:"server"`
	Kubeconfig string  `json:"kubeconfig"`
	CA         string  `json:"ca"`
	PID        int     `json:"pid"`
	Seconds    float64 `json:"seconds"`
}

var started = time.Now()

func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testplane %6.2fs %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}

func parseFlags() (*config, error) {
	c := &config{}
	flag.StringVar(&c.dir, "dir", "", "state directory; short, as it holds unix sockets (required)")
	flag.StringVar(&c.host, "host", "127.0.0.1", "address to serve on")
	flag.IntVar(&c.port, "port", 0, "port to serve on; 0 takes a free one")
	flag.BoolVar(&c.fsync, "fsync", false, "etcd syncs to disk: slower, survives a power cut")
	flag.BoolVar(&c.exitOnStdinEOF, "exit-on-stdin-eof", false, "stop when stdin closes, as when the parent dies")
	flag.Var(&c.apiserverArgs, "apiserver-arg", "extra kube-apiserver flag (repeatable)")
	flag.Var(&c.tlsSANs, "tls-san", "extra name or address in the kube-apiserver's certificate (repeatable)")
	flag.Var(&c.nodeIdentities, "node", "write node-NAME.kubeconfig with that node's kubelet identity (repeatable)")
	flag.Var(&c.fakeNodes, "fake-node", "add a Ready node whose pods only seem to run (repeatable)")
	flag.Parse()
	if c.dir == "" {
		return nil, errors.New("-dir is required")
	}
	if flag.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	dir, err := filepath.Abs(c.dir)
	if err != nil {
		return nil, err
	}
	c.dir = dir
	return c, os.MkdirAll(c.dir, 0o700)
}

func main() {
	c, err := parseFlags()
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		if c.exitOnStdinEOF {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				stop()
			}()
		}
		if err = run(ctx, c); ctx.Err() != nil {
			err = nil // told to stop: what broke on the way is of no interest
		}
	}
	if err != nil {
		logf("fatal: %v", err)
		os.Exit(1)
	}
	// No component is asked to stop, as that takes seconds: etcd has written its log before it
	// answers, so that nothing is lost by just leaving.
	os.Exit(0)
}

// run starts every component and waits until ctx ends or a component does (its error).
func run(ctx context.Context, c *config) error {
	if err := listen(c); err != nil {
		return err
	}
	if err := writePKI(c); err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	endpoint, err := startEtcd(c)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	logf("etcd ready")

	stopped := make(chan error, 4)
	start := func(name string, component func(context.Context, *config) error) {
		go func() { stopped <- fmt.Errorf("%s stopped: %w", name, component(ctx, c)) }()
	}
	start("kube-apiserver", func(ctx context.Context, c *config) error { return runAPIServer(ctx, c, endpoint) })
	client, err := adminClient(c)
	if err != nil {
		return err
	}
	if err := waitReady(ctx, client, stopped); err != nil {
		return err
	}
	logf("kube-apiserver ready at %s", c.server)
	start("kube-controller-manager", runControllerManager)
	start("kube-scheduler", runScheduler)
	if err := startFakeNodes(ctx, client, c.fakeNodes); err != nil {
		return err
	}
	if err := announce(c); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-stopped:
		return err
	}
}

// listen opens the apiserver's port at once and keeps it, so that planes starting together never collide.
func listen(c *config) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(c.host, fmt.Sprint(c.port)))
	if err != nil {
		return err
	}
	c.apiserverSocket = listener
	c.port = listener.Addr().(*net.TCPAddr).Port
	c.server = "https://" + net.JoinHostPort(c.host, fmt.Sprint(c.port))
	return nil
}

func adminClient(c *config) (*kubernetes.Clientset, error) {
	rest, err := clientcmd.BuildConfigFromFlags("", c.path("admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	rest.QPS, rest.Burst = 500, 1000
	return kubernetes.NewForConfig(rest)
}

func announce(c *config) error {
	return json.NewEncoder(os.Stdout).Encode(ready{
		Server:     c.server,
		Kubeconfig: c.path("admin.kubeconfig"),
		CA:         c.path("ca.crt"),
		PID:        os.Getpid(),
		Seconds:    time.Since(started).Seconds(),
	})
}
