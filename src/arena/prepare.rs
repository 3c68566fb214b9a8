//! Preparations that a process with arenas makes once.

use super::diagnosis;
use super::registry;
use crate::error::Result;
use std::sync::OnceLock;

/// Makes ready, once, what a process with arenas needs.
pub(crate) fn prepare() -> Result<()> {
    diagnosis::install_once()?;
    registry::prepare()?;
    static NOTICES: OnceLock<()> = OnceLock::new();
    if NOTICES.get().is_none() {
        registry::notice_other_forks()?;
        let _first = NOTICES.set(());
    }
    Ok(())
}
