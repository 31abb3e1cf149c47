package kube

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cbt-populator/cbt-populator/test/cluster/internal/layout"
)

// Until calls check every tenth of a second until it returns nil. When ctx
// ends first, it returns what check said last.
func Until(ctx context.Context, check func(context.Context) error) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// Healthy returns nil once the API server says that it is ready.
func (c *Client) Healthy(ctx context.Context) error {
	_, err := c.do(ctx, "GET", "/readyz", "", nil)
	return err
}

// Established returns nil once the API server serves the definition that doc applied.
func (c *Client) Established(ctx context.Context, doc []byte) error {
	path, err := pathOf(doc)
	if err != nil {
		return err
	}
	var crd struct {
		Status struct {
			Conditions []condition
		}
	}
	if err := c.Get(ctx, path, &crd); err != nil {
		return err
	}
	if !slices.ContainsFunc(crd.Status.Conditions, isCondition("Established")) {
		return fmt.Errorf("%s is not established", path)
	}
	return nil
}

type condition struct{ Type, Status, Message string }

func isCondition(kind string) func(condition) bool {
	return func(c condition) bool { return c.Type == kind && c.Status == "True" }
}

// NodeReady returns nil once the Node is ready and takes pods.
func (c *Client) NodeReady(ctx context.Context) error {
	var node struct {
		Spec   struct{ Taints []struct{ Key string } }
		Status struct{ Conditions []condition }
	}
	if err := c.Get(ctx, "/api/v1/nodes/"+layout.NodeName, &node); err != nil {
		return err
	}
	if !slices.ContainsFunc(node.Status.Conditions, isCondition("Ready")) {
		for _, cond := range node.Status.Conditions {
			if cond.Type == "Ready" {
				return fmt.Errorf("node %s is not ready: %s", layout.NodeName, cond.Message)
			}
		}
		return fmt.Errorf("node %s has not reported yet", layout.NodeName)
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("node %s still has the taint %s", layout.NodeName, node.Spec.Taints[0].Key)
	}
	return nil
}

// DriverRegistered returns nil once the kubelet knows the sample CSI driver.
func (c *Client) DriverRegistered(ctx context.Context) error {
	var node struct {
		Spec struct{ Drivers []struct{ Name string } }
	}
	if err := c.Get(ctx, "/apis/storage.k8s.io/v1/csinodes/"+layout.NodeName, &node); err != nil {
		return err
	}
	for _, d := range node.Spec.Drivers {
		if d.Name == layout.Driver {
			return nil
		}
	}
	return fmt.Errorf("the kubelet has not registered the driver %s", layout.Driver)
}

// DefaultAccount returns nil once pods can be made in the namespace default.
func (c *Client) DefaultAccount(ctx context.Context) error {
	return c.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
}
