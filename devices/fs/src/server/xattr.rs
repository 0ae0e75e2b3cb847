//! Extended attributes: those of the `user.` namespace, of regular files and directories. The
//! others mean something to the host (capabilities, access lists, labels) and stay with it.

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::message::{self, Reply, Request};
use crate::names::{NAME_MAX, take_string};
use crate::nodes::Node;
use crate::server::FileServer;
use crate::server::attributes::change_attributes;
use crate::wire::{self, Errno, InHeader, Result, mode};

/// The namespace that passes.
const NAMESPACE: &[u8] = b"user.";
/// The longest value (`XATTR_SIZE_MAX`).
const VALUE_MAX: usize = 65536;

impl FileServer {
    pub(super) fn setxattr(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let input: wire::SetxattrIn = message::read(request)?;
        if self.setxattr_ext.load(Ordering::Relaxed) {
            message::read::<wire::SetxattrExt>(request)?;
        }
        let bytes = message::read_rest(request, NAME_MAX + 1 + VALUE_MAX)?;
        let (name, value) = take_name(&bytes)?;
        let value = value.get(..input.size as usize).ok_or(Errno::EINVAL)?;
        if input.flags & !(wire::XATTR_CREATE | wire::XATTR_REPLACE) != 0 {
            return Err(Errno::EINVAL);
        }
        let node = self.xattr_node(header.nodeid)?;
        change_attributes(&node, || Ok(node.handle.set_xattr(name, value, input.flags)?))
    }

    pub(super) fn getxattr(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::GetxattrIn = message::read(request)?;
        let bytes = message::read_rest(request, NAME_MAX + 1)?;
        let (name, _) = take_name(&bytes)?;
        let node = self.xattr_node(header.nodeid)?;
        if input.size == 0 {
            let size = node.handle.xattr_len(name)? as u32;
            return message::write(reply, &wire::GetxattrOut { size, padding: 0 });
        }
        let mut value = vec![0; VALUE_MAX.min(input.size as usize)];
        let len = node.handle.xattr(name, &mut value)?;
        reply.put(value.get(..len).unwrap_or_default())
    }

    pub(super) fn listxattr(
        &self,
        header: &InHeader,
        request: &mut impl Request,
        reply: &mut impl Reply,
    ) -> Result<()> {
        let input: wire::GetxattrIn = message::read(request)?;
        let all = match self.xattr_node(header.nodeid) {
            Ok(node) => node.handle.xattr_names()?,
            // Links, fifos and sockets have none, and to ask for them is no mistake.
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            Err(error) => return Err(error),
        };
        let names: Vec<u8> = all
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| name.starts_with(NAMESPACE))
            .flatten()
            .copied()
            .collect();
        if input.size == 0 {
            let size = names.len() as u32;
            return message::write(reply, &wire::GetxattrOut { size, padding: 0 });
        }
        if names.len() > input.size as usize {
            return Err(Errno::ERANGE);
        }
        reply.put(&names)
    }

    pub(super) fn removexattr(&self, header: &InHeader, request: &mut impl Request) -> Result<()> {
        let bytes = message::read_rest(request, NAME_MAX + 1)?;
        let (name, _) = take_name(&bytes)?;
        let node = self.xattr_node(header.nodeid)?;
        change_attributes(&node, || Ok(node.handle.remove_xattr(name)?))
    }

    fn xattr_node(&self, id: u64) -> Result<Arc<Node>> {
        if id == wire::ROOT_ID {
            return Err(Errno::EOPNOTSUPP);
        }
        let node = self.nodes.get(id)?;
        match node.kind {
            mode::REGULAR | mode::DIRECTORY => Ok(node),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

fn take_name(bytes: &[u8]) -> Result<(&CStr, &[u8])> {
    let (name, rest) = take_string(bytes)?;
    match name.to_bytes() {
        name if name.len() > NAME_MAX => Err(Errno::ERANGE),
        name if !name.starts_with(NAMESPACE) => Err(Errno::EOPNOTSUPP),
        _ => Ok((name, rest)),
    }
}
