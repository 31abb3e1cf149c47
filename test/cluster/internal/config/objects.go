package config

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/build"
	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// Document is one object as JSON.
type Document = []byte

// crdSources are the modules whose config/crd folder holds the cluster's
// CustomResourceDefinitions, with the component that pins each.
var crdSources = []struct{ component, module, folder, match string }{
	{"external-snapshotter", "github.com/kubernetes-csi/external-snapshotter/client/v8", "config/crd", "*storage.k8s.io_*.yaml"},
	{"external-snapshot-metadata", "github.com/kubernetes-csi/external-snapshot-metadata/client", "config/crd", "*storage.k8s.io_*.yaml"},
}

// referenceGrants is needed only where claims may name sources in other namespaces.
var referenceGrants = struct{ component, module, folder, match string }{
	"external-provisioner", "sigs.k8s.io/gateway-api", "config/crd/standard", "*_referencegrants.yaml",
}

// CRDs reads the definitions from the module cache.
func CRDs(ctx context.Context, l layout.Layout, crossNamespace bool) ([]Document, error) {
	sources := crdSources
	if crossNamespace {
		sources = append(sources[:len(sources):len(sources)], referenceGrants)
	}
	var docs []Document
	for _, s := range sources {
		dir, err := build.ModuleDir(ctx, l.ComponentDir(s.component), s.module)
		if err != nil {
			return nil, fmt.Errorf("custom resource definitions: %w", err)
		}
		files, err := filepath.Glob(filepath.Join(dir, s.folder, s.match))
		if err != nil {
			return nil, fmt.Errorf("custom resource definitions: %w", err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("custom resource definitions: %s has none in %s", s.module, s.folder)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("custom resource definitions: %w", err)
			}
			more, err := split(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			docs = append(docs, more...)
		}
	}
	return docs, nil
}

// Manifests renders the files of test/cluster/manifests.
func Manifests(l layout.Layout, metadataCA []byte) ([]Document, error) {
	files, err := filepath.Glob(filepath.Join(l.Source, "test/cluster/manifests/*.yaml"))
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	var docs []Document
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
		more, err := Render(string(text), metadataCA)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		docs = append(docs, more...)
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("manifests: %s holds none", filepath.Join(l.Source, "test/cluster/manifests"))
	}
	return docs, nil
}

// Render fills in a manifest's names, addresses and certificate authority.
func Render(text string, metadataCA []byte) ([]Document, error) {
	t, err := template.New("manifest").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, object{
		"Driver":          layout.Driver,
		"Audience":        layout.Audience,
		"MetadataAddress": layout.MetadataService,
		"MetadataCA":      base64.StdEncoding.EncodeToString(metadataCA),
	}); err != nil {
		return nil, err
	}
	return split(out.Bytes())
}

// split turns a YAML stream into JSON documents.
func split(stream []byte) ([]Document, error) {
	var docs []Document
	for _, part := range strings.Split("\n"+string(stream), "\n---") {
		data, err := yaml.YAMLToJSON([]byte(part))
		if err != nil {
			return nil, err
		}
		if string(data) != "null" {
			docs = append(docs, data)
		}
	}
	return docs, nil
}
