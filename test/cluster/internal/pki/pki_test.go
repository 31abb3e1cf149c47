package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func certificate(t *testing.T, pair Pair) *x509.Certificate {
	t.Helper()
	if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		t.Fatalf("certificate and key do not belong together: %v", err)
	}
	block, _ := pem.Decode(pair.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newAuthority(t *testing.T, name string) (*Authority, *x509.CertPool) {
	t.Helper()
	ca, err := NewAuthority(name)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca.Cert) {
		t.Fatal("the authority is not PEM")
	}
	return ca, pool
}

func TestServerIsValidForItsHostsOnly(t *testing.T) {
	ca, pool := newAuthority(t, "ours")
	_, strangers := newAuthority(t, "theirs")
	pair, err := ca.Server("api", "127.0.0.1", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	cert := certificate(t, pair)
	for host, want := range map[string]bool{"127.0.0.1": true, "localhost": true, "198.51.100.1": false, "example.test": false} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: pool, DNSName: host})
		if (err == nil) != want {
			t.Errorf("valid for %s: %v", host, err)
		}
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: strangers, DNSName: "localhost"}); err == nil {
		t.Error("another authority vouches for it")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("a server's certificate is good for a client")
	}
}

func TestClientCarriesUserAndGroups(t *testing.T) {
	ca, pool := newAuthority(t, "ours")
	pair, err := ca.Client("system:node:n", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	cert := certificate(t, pair)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != "system:node:n" || len(cert.Subject.Organization) != 1 || cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject is %s", cert.Subject)
	}
	if cert.IsCA {
		t.Error("a client can sign")
	}
}

func TestAuthoritySurvivesItsFiles(t *testing.T) {
	ca, pool := newAuthority(t, "ours")
	base := filepath.Join(t.TempDir(), "pki", "ca")
	if err := WritePair(base, ca.Pair); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(base + ".key")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v", info.Mode())
	}
	loaded, err := LoadAuthority(base)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := loaded.Server("again", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := certificate(t, pair).Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost"}); err != nil {
		t.Errorf("what the loaded authority signs is not trusted: %v", err)
	}
	if err := os.WriteFile(base+".crt", []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(base); err == nil {
		t.Error("a broken file is an authority")
	}
}
