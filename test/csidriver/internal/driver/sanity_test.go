package driver_test

import (
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
)

// TestSanity runs csi-test's suite, for mounted and for block volumes, over the socket. The suite has no cases for the
// SnapshotMetadata service beyond its capability; metadata_test.go has them.
func TestSanity(t *testing.T) {
	h := newHarness(t, nil)
	for _, accessType := range []string{"mount", "block"} {
		cfg := sanity.NewTestConfig()
		cfg.Address = "unix://" + h.socketPath()
		cfg.TargetPath = filepath.Join(h.dir, accessType+"-target")
		cfg.StagingPath = filepath.Join(h.dir, accessType+"-staging")
		cfg.TestVolumeAccessType = accessType
		cfg.TestVolumeSize = 100 * mib
		cfg.TestVolumeExpandSize = 160 * mib
		var sc *sanity.TestContext
		ginkgo.Describe(accessType, func() { sc = sanity.GinkgoTest(&cfg) })
		defer func() { sc.Finalize() }()
	}
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-test")
}
