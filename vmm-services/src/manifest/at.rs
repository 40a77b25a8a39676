//! A node of the bundle's tree, read so that an error names it.

use super::{Fault, ManifestError, Property};
use crate::fdt::{self, Fdt, Node};

pub(super) type Result<'a, T> = core::result::Result<T, ManifestError<'a>>;

/// A node, with the names that an error about it gives.
pub(super) struct At<'a> {
    /// Node of a VM, or `/`.
    owner: &'a str,
    /// Child node inside it.
    child: &'a str,
    pub(super) node: Node<'a>,
}

impl<'a> At<'a> {
    pub(super) fn root(tree: &Fdt<'a>) -> Self {
        Self { owner: "/", child: "", node: tree.root() }
    }

    pub(super) fn child(&self, name: &'a str) -> Option<Self> {
        let node = self.node.children().find(|n| n.name() == name)?;
        Some(Self { owner: self.owner, child: name, node })
    }

    /// The node of a VM.
    pub(super) fn vm(node: Node<'a>) -> Self {
        Self { owner: node.name(), child: "", node }
    }

    /// The children of a node that is only a list of them.
    pub(super) fn children(&self) -> Result<'a, impl Iterator<Item = Self> + use<'a>> {
        let (owner, node) = (self.owner, self.node);
        match node.properties().next() {
            Some(property) => Err(self.fault(property.name, Fault::Unknown)),
            None => Ok(node.children().map(move |node| Self { owner, child: node.name(), node })),
        }
    }

    pub(super) fn name(&self) -> &'a str {
        self.node.name()
    }

    pub(super) fn fault(&self, name: &'a str, fault: Fault) -> ManifestError<'a> {
        ManifestError { node: self.owner, property: Property { child: self.child, name }, fault }
    }

    /// Refuses properties and child nodes that are not listed.
    pub(super) fn only(&self, properties: &[&str], children: &[&str]) -> Result<'a, ()> {
        match self.node.properties().find(|p| !properties.contains(&p.name)) {
            Some(property) => Err(self.fault(property.name, Fault::Unknown)),
            None => self.only_children(children),
        }
    }

    pub(super) fn only_children(&self, children: &[&str]) -> Result<'a, ()> {
        match self.node.children().find(|c| !children.contains(&c.name())) {
            Some(child) => Err(self.fault(child.name(), Fault::Unknown)),
            None => Ok(()),
        }
    }

    pub(super) fn property(&self, name: &'a str) -> Result<'a, fdt::Property<'a>> {
        self.node.property(name).ok_or(self.fault(name, Fault::Missing))
    }

    /// A property that is there or not, and has no value.
    pub(super) fn flag(&self, name: &'a str) -> Result<'a, bool> {
        match self.node.property(name) {
            Some(property) if !property.value.is_empty() => Err(self.fault(name, Fault::BadType)),
            property => Ok(property.is_some()),
        }
    }

    pub(super) fn u32(&self, name: &'a str) -> Result<'a, u32> {
        self.property(name)?.u32().ok_or(self.fault(name, Fault::BadType))
    }

    pub(super) fn u64(&self, name: &'a str) -> Result<'a, u64> {
        self.property(name)?.u64().ok_or(self.fault(name, Fault::BadType))
    }

    /// A number of one or two cells in `min..=max`.
    pub(super) fn number_within(&self, name: &'a str, min: u64, max: u64) -> Result<'a, u64> {
        let value = self.property(name)?.number().ok_or(self.fault(name, Fault::BadType))?;
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.fault(name, Fault::OutOfRange { value, min, max }))
        }
    }

    pub(super) fn str(&self, name: &'a str) -> Result<'a, &'a str> {
        self.property(name)?.str().ok_or(self.fault(name, Fault::BadType))
    }

    pub(super) fn optional_str(&self, name: &'a str) -> Result<'a, Option<&'a str>> {
        if self.node.property(name).is_none() { Ok(None) } else { self.str(name).map(Some) }
    }
}
