//! Lists in pages, as OpenAI's clients turn them: by the id of the last item they have.

use std::collections::VecDeque;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, ApiResult};

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    Asc,
    #[default]
    Desc,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Paging {
    pub after: Option<String>,
    pub limit: Option<usize>,
    #[serde(default)]
    pub order: Order,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct List<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl Paging {
    /// The ids from where the page begins, in its order, and how many it may have.
    pub fn begin(
        &self,
        newest_first: VecDeque<String>,
        default: usize,
        max: usize,
    ) -> ApiResult<(VecDeque<String>, usize)> {
        let limit = self.limit.unwrap_or(default);
        if !(1..=max).contains(&limit) {
            return Err(ApiError::invalid("invalid_value", "limit", format!("{limit} is not between 1 and {max}")));
        }
        let mut ids = newest_first;
        if self.order == Order::Asc {
            ids.make_contiguous().reverse();
        }
        if let Some(after) = &self.after {
            // The item may have been deleted since: ids are in order all the same.
            let is_behind = |id: &String| match self.order {
                Order::Asc => id > after,
                Order::Desc => id < after,
            };
            ids.retain(is_behind);
        }
        Ok((ids, limit))
    }
}

impl<T> List<T> {
    /// A page of items, each with its id.
    pub fn of(items: Vec<(String, T)>, has_more: bool) -> Self {
        let (first_id, last_id) = (items.first().map(|(id, _)| id.clone()), items.last().map(|(id, _)| id.clone()));
        Self { object: "list", data: items.into_iter().map(|(_, item)| item).collect(), first_id, last_id, has_more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_behind_the_last_item_of_the_one_before() {
        let ids = || ["d", "c", "b", "a"].map(str::to_owned).into();
        let page = |after: Option<&str>, order| {
            let paging = Paging { after: after.map(str::to_owned), limit: None, order };
            paging.begin(ids(), 2, 10).unwrap().0.into_iter().collect::<String>()
        };
        assert_eq!(page(None, Order::Desc), "dcba");
        assert_eq!(page(Some("c"), Order::Desc), "ba");
        assert_eq!(page(Some("bb"), Order::Asc), "cd");
        assert!(Paging { limit: Some(11), ..Default::default() }.begin(ids(), 2, 10).is_err());
        assert!(Paging { limit: Some(0), ..Default::default() }.begin(ids(), 2, 10).is_err());
    }
}
