// This file makes the certificates, keys and kubeconfigs of the plane. The authorities and the
// ServiceAccount key of an earlier run in the same directory are kept, so that kubeconfigs and
// tokens outlive a restart; everything else is issued anew.

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	authorityYears   = 10
	certificateYears = 1
)

// authority is a certificate authority.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pem         []byte
}

// identity is what a certificate says: a user, its groups, and for a server its names.
type identity struct {
	user   string
	groups []string
	names  []string
}

func writePKI(c *config) error {
	root, err := loadOrCreateAuthority(c, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := loadOrCreateAuthority(c, "front-proxy-ca")
	if err != nil {
		return err
	}
	names := append([]string{
		c.host, "127.0.0.1", "localhost", serviceIP, "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, c.tlsSANs...)
	for _, leaf := range []struct {
		by   *authority
		file string
		id   identity
	}{
		{root, "apiserver", identity{user: "kube-apiserver", names: names}},
		{root, "kubelet-client", identity{user: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}}},
		{frontProxy, "front-proxy-client", identity{user: "front-proxy-client"}},
	} {
		if _, _, err := leaf.by.issue(c, leaf.file, leaf.id); err != nil {
			return err
		}
	}
	if err := writeServiceAccountKey(c); err != nil {
		return err
	}
	return writeKubeconfigs(c, root)
}

func writeKubeconfigs(c *config, root *authority) error {
	users := map[string]identity{
		"admin":              {user: "kubernetes-admin", groups: []string{"system:masters"}},
		"controller-manager": {user: "system:kube-controller-manager"},
		"scheduler":          {user: "system:kube-scheduler"},
	}
	for _, node := range c.nodeIdentities {
		users["node-"+node] = identity{user: "system:node:" + node, groups: []string{"system:nodes"}}
	}
	for file, id := range users {
		certificate, key, err := root.issue(c, file, id)
		if err != nil {
			return err
		}
		kubeconfig := clientcmdapi.NewConfig()
		kubeconfig.Clusters["testplane"] = &clientcmdapi.Cluster{Server: c.server, CertificateAuthorityData: root.pem}
		kubeconfig.AuthInfos[id.user] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
		kubeconfig.Contexts["testplane"] = &clientcmdapi.Context{Cluster: "testplane", AuthInfo: id.user}
		kubeconfig.CurrentContext = "testplane"
		if err := clientcmd.WriteToFile(*kubeconfig, c.path(file+".kubeconfig")); err != nil {
			return err
		}
	}
	return nil
}

// loadOrCreateAuthority returns the authority in name.crt and name.key, making it if need be.
func loadOrCreateAuthority(c *config, name string) (*authority, error) {
	if pair, err := tls.LoadX509KeyPair(c.path(name+".crt"), c.path(name+".key")); err == nil {
		return &authority{
			certificate: pair.Leaf,
			key:         pair.PrivateKey.(crypto.Signer),
			pem:         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw}),
		}, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(identity{user: "testplane-" + name}, authorityYears)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	return a, writePair(c, name, a.pem, keyPEM)
}

// issue writes file.crt and file.key for the identity and returns both as PEM.
func (a *authority) issue(c *config, file string, id identity) (certificate, key []byte, err error) {
	signer, key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template, err := newTemplate(id, certificateYears)
	if err != nil {
		return nil, nil, err
	}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(id.names) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, name := range id.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, signer.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return certificate, key, writePair(c, file, certificate, key)
}

// writeServiceAccountKey makes the key pair that signs ServiceAccount tokens, once per directory.
func writeServiceAccountKey(c *config) error {
	if _, err := os.Stat(c.path("sa.key")); err == nil {
		return nil
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := os.WriteFile(c.path("sa.pub"), public, 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.path("sa.key"), keyPEM, 0o600)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func newTemplate(id identity, years int) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: id.user, Organization: id.groups},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(years, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}, nil
}

func writePair(c *config, name string, certificate, key []byte) error {
	if err := os.WriteFile(c.path(name+".crt"), certificate, 0o600); err != nil {
		return err
	}
	return os.WriteFile(c.path(name+".key"), key, 0o600)
}
